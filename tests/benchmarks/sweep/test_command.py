"""The command, from arguments to files; at a tiny scale, for breakage and never for time."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from dispatcher import BlockNewItems, ChannelOptions

ROOT = Path(__file__).parents[3]
QUICK = ["--seconds=0.005", "--turns=1", "--finals=1", "--pairs=0"]
SMALL = [*QUICK, "--batch-items-max=1..8", "--batch-age-max=0,5ms", "--max-leases=1,2"]

Capture = pytest.CaptureFixture[str]


def make_source(tmp_path: Path, body: str) -> str:
    path = tmp_path / "user_of_sweep.py"
    path.write_text(f"import anyio\n\nasync def send(batch):\n    {body}\n", encoding="utf-8")
    return f"{path}:send"


class TestSweep:
    def test_prints_table_map_and_one_setting(self, capsys: Capture) -> None:
        """What is recommended can be pasted."""
        assert main(["sweep", "scripted:a=1ms", *SMALL, "--pairs=1"]) == 0
        out = capsys.readouterr().out

        assert "items/s" in out
        assert "max_leases" in out
        assert "of 24 cells of the grid were run; goal: most items/s" in out
        assert "recommended against defaults: " in out
        pasted = out[out.index("ChannelOptions(") :]
        made = eval(
            pasted[: pasted.index("\n)") + 2],
            {"ChannelOptions": ChannelOptions, "BlockNewItems": BlockNewItems},
        )
        assert isinstance(made, ChannelOptions)

    def test_writes_every_turn_and_the_machine(self, tmp_path: Path) -> None:
        """Whoever doubts a median can look."""
        file = tmp_path / "sweep.json"
        arguments = ["--item-size=10,1kB", "--every-cell", "--pairs=1", f"--json={file}"]
        assert main(["sweep", "scripted:a=1ms", *SMALL, "--batch-items-max=1,8", *arguments]) == 0
        read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))

        assert len(read["cells"]) == 2 * 2 * 2 * 2
        assert {cell["item_size"] for cell in read["cells"]} == {10, 1000}
        assert all(cell["turns"][0]["calls"] for cell in read["cells"])
        assert read["grid"]["cells"] == 8
        assert set(read["machine"]) == {"python", "system", "processors"}
        assert set(read["recommended"]) >= {
            "batch_items_max",
            "batch_age_max",
            "max_leases",
            "options",
            "reason",
        }
        assert len(read["against_defaults"]["defaults"]) == 2
        assert read["target"] == "scripted:a=1ms"
        assert read["stopped"] is False

    @pytest.mark.parametrize(
        ("goal", "shown"),
        [
            (["--goal=latency", "--p99=1s"], "most items/s with a p99 of at most 1s"),
            (["--goal=latency", "--rate=500"], "lowest p99 at 500 items/s"),
            (["--goal=latency", "--rate=500", "--p99=1s"], "lowest p99 at 500 items/s, p99 of at most 1s"),
            (["--rate=500"], "smallest setting that carries it at 500 items/s"),
        ],
    )
    def test_takes_each_goal(self, goal: list[str], shown: str, capsys: Capture) -> None:
        assert main(["sweep", "scripted:a=1ms", *SMALL, "--batch-items-max=1,8", *goal]) == 0

        assert f"goal: {shown}\n" in capsys.readouterr().out

    def test_ages_that_break_the_bound_are_not_tried(self, tmp_path: Path) -> None:
        """Under full load batches are full before; a lone item would wait all the same."""
        file = tmp_path / "sweep.json"
        goal = ["--goal=latency", "--p99=50ms", "--rate=500"]
        axes = ["--batch-items-max=8", "--max-leases=1", "--batch-age-max=0,10ms,50ms,200ms"]

        assert main(["sweep", "scripted:a=1ms", *QUICK, *axes, *goal, f"--json={file}"]) == 0
        assert json.loads(file.read_text())["grid"]["batch_age_max"] == [0, 0.01]

    @pytest.mark.parametrize("ending", ["svg", "png"])
    def test_draws(self, ending: str, tmp_path: Path) -> None:
        file = tmp_path / f"picture.{ending}"

        assert main(["sweep", "scripted:a=1ms", *SMALL, f"--plot={file}"]) == 0
        begin = file.read_bytes()[:200]
        assert (b"<svg" if ending == "svg" else b"PNG") in begin or b"<?xml" in begin

    def test_a_file_that_cannot_be_written_takes_nothing_away(self, tmp_path: Path, capsys: Capture) -> None:
        """After minutes of measuring, the figures are shown all the same."""
        one = ["--batch-items-max=8", "--max-leases=1", "--batch-age-max=0"]

        assert main(["sweep", "scripted:a=1ms", *QUICK, *one, f"--json={tmp_path}"]) == 1
        captured = capsys.readouterr()
        assert "recommended:" in captured.out
        assert f"sweep: {tmp_path} cannot be written: Is a directory" in captured.err

    @pytest.mark.parametrize("backend", ["trio", "uvloop"])
    def test_runs_on_other_loops(self, backend: str) -> None:
        pytest.importorskip(backend)
        assert main(["sweep", "scripted:a=1ms", *SMALL, "--batch-items-max=8", f"--backend={backend}"]) == 0

    def test_shows_what_a_send_fn_raised(self, tmp_path: Path, capsys: Capture) -> None:
        """The defaults are too much for this one: the search begins at the least, and avoids what fails."""
        body = "await anyio.sleep(0.001)\n    if len(batch) > 4: raise ValueError('at most four')"

        assert main(["sweep", make_source(tmp_path, body), *SMALL, "--batch-items-max=2,4,8"]) == 0
        captured = capsys.readouterr()
        assert "nothing was delivered with 8 items" in captured.err
        assert "x ValueError: at most four" in captured.out
        assert "batch_items_max=8" not in captured.out

    def test_of_poison_the_table_tells(self, capsys: Capture) -> None:
        assert main(["sweep", "scripted:a=1ms,poison=3", *SMALL]) == 0

        assert "x ValueError: poison" in capsys.readouterr().out

    def test_a_slow_first_call_is_forgiven(self, tmp_path: Path) -> None:
        """Connections, imports and caches take their time once; a turn is shorter than that."""
        path = tmp_path / "cold_at_first.py"
        source = "import anyio\ncalls = 0\n\nasync def send(batch):\n    global calls\n    calls += 1\n"
        path.write_text(f"{source}    await anyio.sleep(0.001 if calls > 2 else 30)\n", encoding="utf-8")

        assert main(["sweep", f"{path}:send", *SMALL]) == 0

    def test_a_send_fn_that_never_works_ends_the_run(self, tmp_path: Path, capsys: Capture) -> None:
        """There is nothing to tune; the reason is what the user wants to see."""
        assert main(["sweep", make_source(tmp_path, "raise KeyError('no table')"), *SMALL]) == 1

        assert "sweep: nothing was delivered with 1 items" in (err := capsys.readouterr().err)
        assert "KeyError: 'no table'" in err

    @pytest.mark.parametrize(
        ("body", "name", "told"),
        [
            ("import contextlib\n@contextlib.asynccontextmanager\nasync def opened():\n    1 / 0\n    yield\n",
             ["opened"], "opening the sink raised ZeroDivisionError: division by zero"),
            ("async def send(batch): pass\ndef make(number, size):\n    return 1 / (20 - number)\n",
             ["send", "--item=make"], "the function that makes items raised ZeroDivisionError"),
        ],
    )  # fmt: skip
    def test_what_else_of_the_user_s_fails_is_told_by_name(
        self, body: str, name: list[str], told: str, tmp_path: Path, capsys: Capture
    ) -> None:
        path = tmp_path / "failing_for_sweep.py"
        path.write_text(body, encoding="utf-8")

        assert main(["sweep", f"{path}:{name[0]}", *name[1:], *SMALL]) == 1
        assert told in capsys.readouterr().err

    def test_without_finals_and_pairs_it_ends_sooner(self, capsys: Capture) -> None:
        assert main(["sweep", "scripted:a=1ms", *SMALL, "--finals=0"]) == 0
        out = capsys.readouterr().out

        assert "recommended:" in out
        assert "against defaults" not in out


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["nowhere:send"], "needs a module that can be imported"),
            (["math:nothing"], "needs a name that math has"),
            (["math:pi"], "has to be an async function of one batch"),
            (["scripted:a=x"], "scripted:a is written as 50ms"),
            (["scripted:", "--max-leases=0"], "--max-leases takes whole numbers of 1 or more"),
            (["scripted:", "--batch-age-max=soon"], "--batch-age-max is written as 50ms"),
            (["scripted:", "--item-size=0"], "--item-size is written as 100, 10kB or 1MiB"),
            (["scripted:", "--goal=latency"], "--goal latency needs --p99"),
            (["scripted:", "--p99=50ms"], "--p99 goes with --goal latency, got '50ms'"),
            (["scripted:", "--goal=latency", "--p99=0"], "--p99 has to be more than 0, got '0'"),
            (
                ["scripted:", "--goal=latency", "--p99=5ms", "--batch-age-max=5ms"],
                "--batch-age-max needs an age below",
            ),
            (["scripted:", "--rate=0"], "--rate has to be 0.1 or more, got 0.0"),
            (["scripted:", "--seconds=nan"], "--seconds has to be 0.001 or more, got nan"),
            (["scripted:", "--turns=0"], "--turns has to be 1 or more, got 0"),
            (["scripted:", "--tolerance=1"], "--tolerance has to be 0 or more, and less than 1, got 1.0"),
            (["scripted:", "--plot=a.gif"], "--plot has to end in .png or .svg, got 'a.gif'"),
            (["scripted:", "--json=/no/such/folder/a.json"], "--json needs a folder that exists"),
            (["scripted:", "--item=make"], "got "),
        ],
    )
    def test_wrong_use_is_told_before_anything_runs(
        self, arguments: list[str], told: str, capsys: Capture
    ) -> None:
        """Rule and value, on stderr, with exit status 2."""
        assert main(["sweep", *arguments]) == 2
        captured = capsys.readouterr()

        assert told in captured.err
        assert captured.out == ""

    def test_an_opener_of_something_else_is_told_when_it_is_opened(
        self, tmp_path: Path, capsys: Capture
    ) -> None:
        path = tmp_path / "opener_of_nothing.py"
        path.write_text("def open_it():\n    return None\n", encoding="utf-8")

        assert main(["sweep", f"{path}:open_it", *SMALL]) == 2
        assert "it returned None" in capsys.readouterr().err


class TestInterrupt:
    def test_ctrl_c_ends_with_what_was_measured(self, tmp_path: Path) -> None:
        """Minutes of measuring are not lost."""
        file = tmp_path / "part.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks",
            "sweep",
            "scripted:a=1ms",
            "--seconds=0.02",
            "--turns=1",
        ]
        with subprocess.Popen(
            [*command, f"--json={file}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            for line in process.stderr:
                if line.startswith("  "):  # a cell is complete
                    process.send_signal(signal.SIGINT)
                    break
            out = process.stdout.read()
            process.stderr.read()
        read = json.loads(file.read_text(encoding="utf-8"))

        assert process.returncode == 130
        assert "stopped: this is what was measured so far" in out
        assert read["stopped"] is True
        assert read["cells"]

    def test_a_second_one_does_not_wait_for_the_turn(self, tmp_path: Path) -> None:
        """Whose SendFn hangs need not wait until that is given up."""
        begun = "__import__('sys').stderr.write('sending\\n')"
        target = make_source(tmp_path, f"{begun}\n    await anyio.sleep_forever()")
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks", "sweep", target, "--seconds=30"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            told = iter(process.stderr)
            assert "sending\n" in told  # a turn has begun
            process.send_signal(signal.SIGINT)
            assert any(line.startswith("stopping after this turn") for line in told)
            process.send_signal(signal.SIGINT)
            out = process.stdout.read()
            rest = process.stderr.read()

        assert process.returncode == 130, rest
        assert out == "stopped before anything was measured\n"

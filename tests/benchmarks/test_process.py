"""What a process has used: its own work, and that of those beneath it."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.process import cpu_seconds, memory

# Burns so much processor time in a child, or fills so much memory, says so, and waits to be ended.
_BURNING = """
import subprocess, sys, time
child = [sys.executable, "-c", "import sys, time\\nwhile time.process_time() < 0.3: pass\\nprint(1, flush=True)\\nsys.stdin.read()"]
with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=sys.stdout) as process:
    sys.stdin.read()
"""
_FILLING = "import sys; kept = bytearray(64 << 20); del kept; print(1, flush=True); sys.stdin.read()"


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[int]:
    command = [sys.executable, "-c", request.param]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield running.pid
        assert running.stdin is not None
        running.stdin.close()


class TestProcessorTime:
    @pytest.mark.parametrize("process", [_BURNING], indirect=True)
    def test_children_count(self, process: int) -> None:
        """A server that forks is not cheaper for it."""
        assert 0.3 <= cpu_seconds(process) < 5

    def test_a_process_that_is_gone_has_used_nothing_more(self) -> None:
        """A child that ends between two readings is no fault."""
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()

        assert cpu_seconds(process.pid) == 0


class TestMemory:
    @pytest.mark.parametrize("process", [_FILLING], indirect=True)
    def test_the_peak_stays_when_memory_is_given_back(self, process: int) -> None:
        """In MiB, and the most it ever held is more than what it holds."""
        assert memory(process, "VmHWM") >= 64
        assert memory(process, "VmRSS") < memory(process, "VmHWM")

"""``"header | hasher | sql"`` compiled: stages, order, explanation, and every refusal."""

import json
import sys
import types
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from mailpipe.chain import ChainError, Plan, Settings, compile_chain, find_spec
from mailpipe.envelope import Envelope, Recipient
from mailpipe.steps import Durability, processor


@attrs.frozen(kw_only=True)
class KeepOptions:
    url: str = "sqlite:///mail.db"
    lasting: bool = True
    holds_body: bool = True
    durability: Durability = "disk"
    largest: int | None = None


class Keep:
    """A storage that states everything and keeps nothing: the compiler never calls it."""

    idempotent, serial = True, True

    def __init__(self, options: KeepOptions) -> None:
        self.durability = options.durability
        self.lasting, self.holds_body, self.largest = options.lasting, options.holds_body, options.largest

    async def setup(self, place: object) -> None:
        pytest.fail("compiling opens nothing")

    async def teardown(self) -> None: ...

    async def __call__(self, batch: Any) -> None: ...


def tap(envelope: Envelope) -> Iterator[None]:
    yield


def judge(envelope: Envelope) -> None: ...


async def post(batch: Any) -> None: ...


def known(recipient: Recipient) -> None: ...


@pytest.fixture
def names() -> dict[str, Any]:
    """Steps of every kind, described as `processor` does, known to these tests only."""
    made: dict[str, Any] = {}

    def add(name: str, target: Any, **told: Any) -> None:
        if isinstance(target, type):
            target = type(target.__name__, (target,), {})
        else:
            target = types.FunctionType(target.__code__, target.__globals__)
            target.__annotations__ = told.pop("annotations")
        made[name] = processor(name, **told)(target)

    envelope = {"envelope": Envelope}
    add("tap", tap, annotations=envelope, writes=("crc",))
    add("judge", judge, annotations=envelope)
    add("reader", judge, annotations=envelope, reads=("crc",))
    add("squeeze", post, annotations={}, kind="batch", writes=("small",))
    add("keep", Keep, kind="batch", options=KeepOptions, storage=True)
    add(
        "cut",
        Keep,
        kind="batch",
        options=KeepOptions,
        storage=True,
        conflicts={"squeeze": "nothing would be shared"},
    )
    add("known", known, annotations={"recipient": Recipient})
    made["post"] = post
    return made


def compiled(names: dict[str, Any], text: str, **more: Any) -> Plan:
    return compile_chain(text, steps=names, **more)


class TestStages:
    def test_hooks_say_when_and_the_text_says_the_order_within(self, names: dict[str, Any]) -> None:
        """Stream, then envelope, then batch; the text orders each."""
        plan = compiled(names, "judge | squeeze | tap | keep")

        assert [step.name for step in plan.steps] == ["tap", "judge", "squeeze", "keep"]
        assert [step.name for step in plan.batch] == ["squeeze", "keep"]

    def test_a_named_instance_keeps_its_own_options(self, names: dict[str, Any]) -> None:
        """``archive:keep`` is a *keep* called archive, with the table [processors.archive]."""
        settings = {
            "archive": Settings(type="keep", options={"url": "x"}),
            "keep": Settings(options={"url": "y"}),
        }
        names["archive"] = names["keep"]

        plan = compiled(names, "Archive:Keep | KEEP", settings=settings)

        assert [(step.name, step.options.url) for step in plan.batch] == [("archive", "x"), ("keep", "y")]  # type: ignore[union-attr]

    def test_case_never_matters(self, names: dict[str, Any]) -> None:
        """go-guerrilla's groups are of any case."""
        assert [step.name for step in compiled(names, "TAP|Judge|kEEp").steps] == ["tap", "judge", "keep"]

    def test_a_plain_send_fn_is_a_step(self, names: dict[str, Any]) -> None:
        """It needs no decorator, and is where mails end."""
        plan = compiled(names, "judge | post")

        assert plan.batch[0].target is post
        assert plan.durability == "none"

    def test_a_validate_chain_takes_recipients(self, names: dict[str, Any]) -> None:
        """And needs no storage."""
        assert [step.name for step in compiled(names, "known", purpose="validate").envelope] == ["known"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "rule"),
        [
            ("", "joined by '|'"),
            ("tap || keep", "joined by '|'"),
            ("tap | keep |", "joined by '|'"),
            ("tap | keeep", "no such step"),
            ("tap | hashr | keep", "did you mean 'hasher'"),
            ("no such | keep", "NAME or NAME:TYPE"),
            ("archive: | keep", "NAME or NAME:TYPE"),
            ("keep | keep", "stands twice"),
            ("keep | judge", "cannot stand after the storage 'keep'"),
            ("keep | tap", "cannot stand after the storage 'keep'"),
            ("reader | keep", "reads 'crc', which nothing earlier writes"),
            ("squeeze | cut", "nothing would be shared"),
            ("tap | judge", "keeps nothing"),
            ("tap | squeeze", "keeps nothing"),
            ("known | keep", "takes a recipient"),
            ("buffer", "at least one step"),
        ],
    )
    def test_says_rule_and_value(self, names: dict[str, Any], text: str, rule: str) -> None:
        """Every chain that cannot be is refused with the reason, and tells its text."""
        with pytest.raises(ChainError, match=rule) as caught:
            compiled(names, text)
        assert caught.value.text == text

    def test_reads_are_judged_in_the_order_of_running(self, names: dict[str, Any]) -> None:
        """An envelope step may read what a stream step after it in the text writes."""
        assert [step.name for step in compiled(names, "reader | tap | keep").steps] == [
            "tap",
            "reader",
            "keep",
        ]

    def test_a_later_writer_is_named(self, names: dict[str, Any]) -> None:
        """The message tells who would have to come first."""
        names["late"] = processor("late", kind="batch", reads=("small",))(lambda batch: None)

        with pytest.raises(ChainError, match="'squeeze' writes it, but runs later"):
            compiled(names, "late | squeeze | post")

    def test_a_validate_chain_has_no_body(self, names: dict[str, Any]) -> None:
        """A stream step has nothing to do at RCPT."""
        with pytest.raises(ChainError, match="no body yet"):
            compiled(names, "tap | known", purpose="validate")

    def test_unknown_option(self, names: dict[str, Any]) -> None:
        """Unknown keys are errors (law 10)."""
        with pytest.raises(ChainError, match=r"no option 'ulr'; known: url, "):
            compiled(names, "keep", settings={"keep": Settings(options={"ulr": 1})})

    def test_options_for_a_step_without_any(self, names: dict[str, Any]) -> None:
        """What nobody would read is refused."""
        with pytest.raises(ChainError, match="takes no options"):
            compiled(names, "judge | keep", settings={"judge": Settings(options={"a": 1})})

    def test_options_of_another_class(self, names: dict[str, Any]) -> None:
        """A ready instance must be of the step's class."""
        with pytest.raises(ChainError, match="takes options of KeepOptions"):
            compiled(names, "keep", settings={"keep": Settings(options=object())})

    def test_a_storage_states_its_promises(self, names: dict[str, Any]) -> None:
        """Durability is never guessed."""

        @processor("mute", kind="batch", storage=True)
        class Mute:
            async def __call__(self, batch: Any) -> None: ...

        with pytest.raises(ChainError, match="missing: durability"):
            compiled({"mute": Mute}, "mute")

    def test_type_in_text_and_table_agree(self, names: dict[str, Any]) -> None:
        """One of the two would be ignored silently."""
        with pytest.raises(ChainError, match="its table says type = 'sql'"):
            compiled(names, "archive:keep", settings={"archive": Settings(type="sql")})

    def test_a_product_alias_never_falls_back(self) -> None:
        """``MySql`` without a url is an error, never silent SQLite."""

        @processor(
            "quiet",
            kind="batch",
            options=KeepOptions,
            storage=True,
            aliases=("loud",),
            requires={"loud": ("url",)},
        )
        class Quiet(Keep): ...

        assert compile_chain("quiet").record is not None
        with pytest.raises(ChainError, match="'loud' needs url"):
            compile_chain("LOUD")
        assert (
            compile_chain("Loud", settings={"loud": Settings(options={"url": "mysql://x"})}).record
            is not None
        )


class TestGoGuerrilla:
    """The chains of its documents and samples."""

    def test_the_documented_one(self) -> None:
        """Its names, its order of stages ours."""
        settings = {"MySql": Settings(options={"url": "mysql://user:pass@db/mail"})}
        plan = compile_chain("HeadersParser|Debugger|Hasher|Header|Compressor|Redis|MySql", settings=settings)

        assert [step.name for step in plan.steps] == [
            "hasher",
            "headersparser",
            "debugger",
            "header",
            "compressor",
            "redis",
            "mysql",
        ]

    def test_mysql_is_never_silently_sqlite(self) -> None:
        """Without a url it is refused."""
        with pytest.raises(ChainError, match="'mysql' needs url"):
            compile_chain("Hasher|MySql")

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("mimeanalyzer|headersparser|chunksaver", ["mimeanalyzer", "headersparser", "chunksaver"]),
            ("header|compress|decompress|debug|sql", ["header", "debug", "compress", "decompress", "sql"]),
            ("buffer|hasher|sql", ["hasher", "sql"]),
        ],
    )
    def test_its_stream_decorators(self, text: str, names: list[str]) -> None:
        """Under their names."""
        assert [step.name for step in compile_chain(text).steps] == names

    def test_nothing_is_compressed_before_chunks(self) -> None:
        """Nothing would be de-duplicated."""
        with pytest.raises(ChainError, match="cannot stand after 'compress': nothing"):
            compile_chain("mimeanalyzer | compress | chunksaver")

    def test_the_minimal_file(self) -> None:
        """Of the design."""
        plan = compile_chain("header | hasher | compressor | sql")

        assert [step.name for step in plan.steps] == ["hasher", "header", "compressor", "sql"]
        assert (plan.durability, plan.serial, plan.warnings) == ("disk", True, ())


class TestRelay:
    def test_counts_hops_without_being_asked(self) -> None:
        """Two servers that relay to each other would do so for ever."""
        relay = {"relay": Settings(options={"host": "next.example.org"})}

        assert [step.name for step in compile_chain("hasher | relay", settings=relay).envelope] == ["limits"]
        named = {**relay, "limits": Settings(options={"received": 3})}
        (limits,) = compile_chain("relay", settings=named).envelope
        assert limits.options.received == 3  # type: ignore[union-attr]
        assert [s.name for s in compile_chain("strict:limits | relay", settings=relay).envelope] == ["strict"]


class TestConsequences:
    def test_as_durable_as_the_weakest_place_of_the_body(self, names: dict[str, Any]) -> None:
        """A place that keeps facts only does not count."""
        names["cache"] = names["row"] = names["keep"]
        settings = {
            "cache": Settings(options={"durability": "os", "lasting": False}),
            "row": Settings(options={"durability": "none", "holds_body": False}),
        }

        plan = compiled(names, "cache | row | keep", settings=settings)

        assert plan.durability == "os"
        assert plan.record is not None
        assert plan.record.name == "keep"

    def test_the_smallest_largest(self, names: dict[str, Any]) -> None:
        """The chain takes what every place takes."""
        names["other"] = names["keep"]
        settings = {"keep": Settings(options={"largest": 100}), "other": Settings(options={"largest": 7})}

        assert compiled(names, "other | keep", settings=settings).largest == 7
        assert compiled(names, "keep").largest is None

    def test_warns_of_an_earlier_storage_that_keeps_for_ever(self, names: dict[str, Any]) -> None:
        """What the last one refuses would stay in it."""
        names["first"] = names["keep"]

        assert "first: keeps what the later storage" in compiled(names, "first | keep").warnings[0]
        expiring = {"first": Settings(options={"lasting": False})}
        assert compiled(names, "first | keep", settings=expiring).warnings == ()

    def test_explains_itself_in_json(self, names: dict[str, Any]) -> None:
        """``mailpipe check`` prints this."""
        told = json.loads(json.dumps(compiled(names, "reader | tap | keep").explain()))

        assert told["durability"] == "disk"
        assert [(step["name"], step["stage"]) for step in told["steps"]] == [
            ("tap", "stream"),
            ("reader", "envelope"),
            ("keep", "batch"),
        ]
        assert told["steps"][1]["reads"] == ["crc"]
        assert told["steps"][2]["storage"]["durability"] == "disk"


class TestLookup:
    def test_use_names_a_step_of_ones_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``use = "module:name"``."""
        module = types.ModuleType("shop_mail")
        module.judge = judge  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "shop_mail", module)

        spec = find_spec("mine", Settings(use="shop_mail:judge"))

        assert (spec.name, spec.kind, spec.target) == ("mine", "envelope", judge)

    @pytest.mark.parametrize("use", ["nowhere", "nowhere:x", "json:nothing", ":x", "json:__name__"])
    def test_a_bad_use_is_told(self, use: str) -> None:
        """Whatever is wrong with it."""
        with pytest.raises(ChainError, match="mine: use "):
            find_spec("mine", Settings(use=use))

    def test_kinds_without_a_decorator(self) -> None:
        """The first annotation decides."""

        class Sink:
            def open(self, envelope: Envelope) -> object:
                return self

        assert processor("sink-class")(Sink) is Sink
        assert find_spec("sink-class").kind == "stream"

    def test_a_built_in_name_is_never_taken_over(self) -> None:
        """A module that calls its step like one of ours is named, not obeyed."""
        ours = find_spec("discard")
        mine = types.FunctionType(judge.__code__, {"__name__": "shop"})
        mine.__annotations__ = {"envelope": Envelope}
        processor("discard")(mine)
        try:
            with pytest.raises(ChainError, match="is built in, and shop calls"):
                find_spec("discard")
        finally:
            processor("discard", inline=True, rejects=False)(ours.target)
        assert find_spec("discard").target is ours.target

    def test_no_kind_to_be_found(self) -> None:
        """It is asked for instead of guessed."""
        with pytest.raises(TypeError, match="says no kind"):
            processor("vague")(lambda thing: None)

    def test_an_async_generator_is_refused(self) -> None:
        """A stream step is pushed to, it never waits."""

        async def waits(envelope: Envelope) -> Any:
            yield

        with pytest.raises(TypeError, match="plain generator"):
            processor("waits")(waits)

    @pytest.mark.parametrize("name", ["", "a b", "a|b", "a:b", "ä"])
    def test_a_bad_name(self, name: str) -> None:
        """It could not be written in a chain."""
        with pytest.raises(ValueError, match="a step's name is"):
            processor(name)(judge)

"""Searching from Python: in this process, or as a job on Ray that leaves a data set.

generate(prompts, ...)  ->  one Result per prompt
Search(...)             ->  the same with everything loaded once, streaming, and with a loop of one's own
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict, Unpack

from ttsvar_ray.api.results import Result
from ttsvar_ray.config.load import load_config
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.prompts.read import named_prompt
from ttsvar_ray.prompts.rewrite import rewritten
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.search import loop as algorithm
from ttsvar_ray.types import Prompt

if TYPE_CHECKING:
    from ttsvar_ray.api.saved import SavedRun
    from ttsvar_ray.features.registry import FeatureExtractor
    from ttsvar_ray.rewards.protocol import Reward
    from ttsvar_ray.search.operators.protocol import Operator

Loop = Callable[..., algorithm.Found]
"""What `search.loop.search` is: `(plan, run_segment, *, run_seed, prompt_key) -> Found`."""


class SearchOptions(TypedDict, total=False):
    """What `Search` and `generate` take beside the model; None is as if it were not given.

    Attributes:
        n: N of the strategy; multiplies the population.
        strategy: raw, best-of-n, resampling, tts-var, ...
        reward: a name, an import path, or an object with the methods of `rewards.protocol.Reward`.
        extractor: likewise, of `features.registry.FeatureExtractor`.
        selections: the operator after each scale, in place of the strategy's own: a name, an import path, or
            an object. How many survive is `settings["strategy.batch_schedule"]`.
        seed: of all random streams.
        device: "cpu", "cuda", "cuda:1"; by default a GPU where there is one.
        keep: "best", which is the default, or "all" finished images by rank.
        settings: any other setting by its dotted name, `{"sampling.guidance": 4}`, as in a job file.
    """

    n: int | None
    strategy: str | None
    reward: str | Reward | None
    extractor: str | FeatureExtractor | None
    selections: Mapping[int, str | Operator] | None
    seed: int | None
    device: str | None
    keep: str
    settings: Mapping[str, Any] | None


_SETTINGS = {
    "n": "strategy.n",
    "strategy": "strategy.name",
    "reward": "reward.name",
    "extractor": "features.extractor",
    "seed": "seed",
    "device": "model.device",
    "keep": "output.keep",
}


class Search:
    """A model, a reward and a plan, loaded once in this process; results are those of any cluster.

    Attributes:
        plan: what is done to each prompt.
    """

    def __init__(self, model: str = "shapes", **options: Unpack[SearchOptions]) -> None:
        """Load everything.

        Args:
            model: "shapes" (built in), a published name, or a model directory.

        Raises:
            ConfigurationError: everything that is wrong with the settings.
            CheckpointError: weights that cannot be used.
        """
        named: dict[str, Any] = {**options}
        objects = {
            name: named.pop(name)
            for name in ("reward", "extractor")
            if not isinstance(named.get(name), str | None)
        }
        _refuse_other_objects(objects)
        selections = options.get("selections")
        config = load_config(None, _overrides(_given(model, named)), needs_files=False)
        from ttsvar_ray.coordination.settings import CoordinatorSettings
        from ttsvar_ray.job.build import build_engine
        from ttsvar_ray.job.resolved import resolve
        from ttsvar_ray.job.runnable import counted_costs
        from ttsvar_ray.search.strategy import SelectionSetting

        _refuse_two_sources(objects, options.get("settings") or {})
        asked = [SelectionSetting(scale=at, operator=one) for at, one in sorted((selections or {}).items())]
        resolved = resolve(
            config,
            needs_parts=not objects,
            here=True,
            selections=None if selections is None else asked,
        )
        self.plan = resolved.plan
        if options.get("extractor") is not None and resolved.extractor is None:
            raise ConfigurationError(
                "extractor: no selection of this plan reads features; remove it, or name selections that do, "
                'for example settings={"strategy.plan": "published"}'
            )
        self._seed = config.seed
        self._rewrite = config.prompts.rewrite
        self._settings = CoordinatorSettings(spread=1, keep=config.output.keep, trace_bits=True)
        self._engine = build_engine(resolved, **objects)
        self._image_costs = () if objects else counted_costs(resolved)  # of objects nobody has counted any

    def stream(self, prompts: str | Iterable[str | Mapping[str, Any]]) -> Iterator[tuple[int, Result]]:
        """Yield (place among the prompts, result) as they finish; prompts are drawn as they are needed.

        Args:
            prompts: texts, or mappings with "prompt", "id" and more; equal ids draw different images.
        """
        from ttsvar_ray.engine.local import run_local

        for outcome in run_local(
            self._numbered(prompts),
            plan=self.plan,
            engines=[self._engine],
            run_seed=self._seed,
            settings=self._settings,
        ):
            yield outcome.prompt.row, self._result(outcome)

    def run(
        self, prompts: str | Iterable[str | Mapping[str, Any]], *, loop: Loop | None = None
    ) -> list[Result]:
        """Return a result per prompt, in their order.

        Args:
            loop: a search of one's own in place of Algorithm 1, called for one prompt after the other as
                `search.loop.search` is; `run_segment` carries trajectories through the plan's segments.
        """
        if loop is None:
            return [result for _, result in sorted(self.stream(prompts), key=lambda pair: pair[0])]
        from ttsvar_ray.engine.local import search_prompt

        return [
            self._result(
                search_prompt(prompt, plan=self.plan, engine=self._engine, run_seed=self._seed, loop=loop)
            )
            for prompt in self._numbered(prompts)
        ]

    def _numbered(self, prompts: str | Iterable[str | Mapping[str, Any]]) -> Iterator[Prompt]:
        """Yield prompts with what the model reads in their place."""
        for prompt in _numbered(prompts):
            yield prompt if self._rewrite is None else rewritten(prompt, self._rewrite)

    def _result(self, outcome: PromptResult | PromptFailure) -> Result:
        """Return what became of a prompt, with a tree that this search's own model draws."""
        from ttsvar_ray.api.replay import Replayer

        prompt = outcome.prompt
        if isinstance(outcome, PromptFailure):
            return Result(
                prompt=prompt.text,
                prompt_used=prompt.model_text,
                prompt_id=prompt.prompt_id,
                images=(),
                tree=None,
                error=outcome.errors[-1] if outcome.errors else "given up",
                columns=prompt.columns,
            )
        painter = partial(Replayer(self._engine.model).latest, prompt.model_text)
        spent = outcome.cost_images(self._image_costs)
        return replace(Result.of(prompt, outcome.images, outcome.trace, painter=painter), cost_images=spent)


def generate(
    prompts: str | Iterable[str | Mapping[str, Any]],
    *,
    model: str = "shapes",
    output: str | Path | None = None,
    address: str | None = None,
    progress: bool = False,
    **options: Unpack[SearchOptions],
) -> Sequence[Result]:
    """Return the best images for prompts.

    Without `output` everything happens in this process, and nothing is written. With it the prompts become a
    job on Ray (of `address`, or of this machine) which writes a data set there and can be continued by the
    same call; the results are read from it one by one.

    Args:
        prompts: one text, several, or mappings with "prompt" and "id".
        model: see `Search`.
        output: folder or URI of the data set.
        address: of a Ray cluster.
        progress: show a bar.
        options: see `SearchOptions`. A job on Ray takes no objects: workers import classes of yours by path,
            "package.module:Name".

    Raises:
        ConfigurationError, CheckpointError: settings that cannot be run.
        OutputError: `output` holds another run.
    """
    if output is not None:
        for name in ("reward", "extractor"):
            _by_path(name, options.get(name))
        return _job(
            prompts,
            _given(model, options)
            | _selections_by_path(options.get("selections"))
            | {"output.path": str(output)}
            | ({} if address is None else {"cluster.address": address}),
            progress=progress,
        )
    if address is not None:
        raise ConfigurationError("output: a job on a cluster writes a data set; say where, output='FOLDER'")
    texts = list(_numbered(prompts))
    search = Search(model, **options)
    found: dict[int, Result] = {}
    with _bar(len(texts), enabled=progress) as advance:
        for place, result in search.stream(
            [{**one.columns, "prompt": one.text, "id": one.prompt_id} for one in texts]
        ):
            found[place] = result
            advance(1)
    return [found[place] for place in range(len(texts))]


def _job(
    prompts: str | Iterable[str | Mapping[str, Any]], settings: Mapping[str, Any], *, progress: bool
) -> SavedRun:
    """Run the prompts as a job and open what it wrote."""
    from ttsvar_ray.api.saved import load
    from ttsvar_ray.cluster.job import run_job

    with tempfile.TemporaryDirectory(prefix="ttsvar-prompts-") as folder:
        file = Path(folder) / "prompts.jsonl"
        count = 0
        with file.open("w", encoding="utf-8") as lines:
            for prompt in _numbered(prompts):
                line = {**prompt.columns, "prompt": prompt.text, "id": prompt.prompt_id}
                try:
                    lines.write(json.dumps(line) + "\n")
                except (TypeError, ValueError) as problem:
                    told = f"prompts[{prompt.row}]: a job reads them from JSON ({problem}); make it text"
                    raise ConfigurationError(told) from None
                count += 1
        wanted = {**settings, "prompts.path": str(file), "prompts.id_column": "id"}
        config = load_config(None, _overrides(wanted))
        with _bar(count, enabled=progress) as advance:
            done = 0

            def follow(state: Any) -> None:
                nonlocal done
                advance(state.prompts_done - done)
                done = state.prompts_done

            summary = run_job(config, progress=follow)
    return load(summary.output)


def _given(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given as settings; objects and selections are no settings."""
    for name in options.keys() - SearchOptions.__annotations__.keys():
        raise TypeError(f"got an unexpected keyword argument {name!r}")
    if not isinstance(selections := options.get("selections"), Mapping | None):
        remedy = "a list as in a job file is settings={'strategy.selections': [...]}"
        raise ConfigurationError(
            f"selections: expected an operator by scale, {{6: 'top-k'}}, got {selections!r}; {remedy}"
        )
    named: dict[str, Any] = {"model.name": model}
    named |= {setting: options.get(name) for name, setting in _SETTINGS.items()}
    given = {name: value for name, value in named.items() if value is not None}
    return given | dict(options.get("settings") or {})


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as a command line has them; JSON is YAML."""
    return [f"{name}={json.dumps(value)}" for name, value in settings.items()]


def _refuse_two_sources(objects: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    sections = {"reward": "reward.", "extractor": "features."}
    problems = [
        f"{name}: an object is given, which no setting describes, and {setting}, too; remove one"
        for name in objects
        for setting in settings
        if setting.startswith(sections[name])
    ]
    if problems:
        raise ConfigurationError(problems)


def _refuse_other_objects(objects: Mapping[str, Any]) -> None:
    """Refuse what has not the methods of its protocol, before anything is loaded."""
    from ttsvar_ray.features import registry as features
    from ttsvar_ray.rewards import registry as rewards

    problems = []
    for name, methods, hint in (
        (
            "reward",
            rewards.METHODS,
            "; derive it from ttsvar_ray.rewards.protocol.PlainReward, which asks for `score` alone",
        ),
        ("extractor", features.METHODS, ""),
    ):
        if name not in objects:
            continue
        one = objects[name]
        if isinstance(one, type):
            problems.append(f"{name}: expected an object, got the class {one.__qualname__}; make one of it")
            continue
        missing = [method for method in methods if not callable(getattr(one, method, None))]
        missing += [] if isinstance(getattr(one, "name", None), str) else ["name"]
        if missing:
            problems.append(
                f"{name}: expected an object with {', '.join((*methods, 'name'))}; "
                f"{type(one).__qualname__} has no {', '.join(missing)}{hint}"
            )
    if problems:
        raise ConfigurationError(problems)


def _by_path(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    path = f"{type(value).__module__}:{type(value).__qualname__}"
    raise ConfigurationError(
        f"{name}: expected a name or an import path such as '{path}' for a job "
        "on Ray, whose workers import it; got an object. Without output= the object itself will do"
    )


def _selections_by_path(selections: Mapping[int, str | Operator] | None) -> dict[str, Any]:
    if selections is None:
        return {}
    named = [
        {"scale": scale, "operator": _by_path(f"selections[{scale}]", operator)}
        for scale, operator in sorted(selections.items())
    ]
    return {"strategy.selections": named}


def _numbered(prompts: str | Iterable[str | Mapping[str, Any]]) -> Iterator[Prompt]:
    """Yield prompts as a prompt file would: ids are those of their texts, equal ones have other ordinals."""
    seen: dict[str, int] = {}
    for row, one in enumerate([prompts] if isinstance(prompts, str | Mapping) else prompts):
        fields = {"prompt": one} if isinstance(one, str) else one
        try:
            if not isinstance(fields, Mapping):
                raise ValueError(f"got a {type(one).__name__}")
            prompt_id, text = named_prompt(fields, "prompt", "id" if "id" in fields else None)
        except ValueError as problem:
            raise ConfigurationError(
                f"prompts[{row}]: expected a text, or a mapping with 'prompt' and 'id', texts, got {one!r} "
                f"({problem})"
            ) from None
        ordinal = seen.get(prompt_id, 0)
        seen[prompt_id] = ordinal + 1
        more = {name: value for name, value in fields.items() if name not in ("prompt", "id")}
        yield Prompt(row=row, prompt_id=prompt_id, ordinal=ordinal, text=text, columns=more)


@contextlib.contextmanager
def _bar(total: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error; yield what moves it by a number of prompts."""
    if not enabled:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as shown:
        task = shown.add_task("prompts", total=total)
        yield lambda count: shown.advance(task, count)

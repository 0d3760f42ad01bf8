"""The comparison of methods on one data set: prepare, evaluate, write the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.core.files import require_writable_folder
from benchmarks.core.seeding import sample
from benchmarks.core.settings import as_command, as_json
from benchmarks.datasets.choice import DataChoice, choose_data, refuse_unknown_data, survey
from benchmarks.methods import select
from benchmarks.methods.reductions import Reduction
from benchmarks.networks.build import build_network
from benchmarks.networks.layers import find_layer
from benchmarks.protocols.protocol import Source
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.report.charts import charts_of, save_charts
from benchmarks.report.page import write_page
from benchmarks.report.panels import read_panels
from benchmarks.results.files import header, machine, package_versions, write_results
from benchmarks.results.images import ImageTable
from benchmarks.results.summary import FLOORS, declared, forward_costs, main_method, summarize
from benchmarks.results.tables import as_text, counts_text, forward_text, table_rows
from benchmarks.runs.evaluation import Bench, EvaluationPlan, Evaluator, Work
from benchmarks.runs.folder import RunFolder
from benchmarks.runs.marked import prepare_networks, retrieval_of
from benchmarks.runs.memory import peak_memory
from benchmarks.runs.parallel import evaluate, overheads, require_same_works, threads_of
from benchmarks.runs.pictures import write_panels, write_qualitative
from benchmarks.runs.preparation import (
    ProtocolCache,
    ShownImages,
    prepare_banks,
    query_references,
)
from benchmarks.runs.settings import BenchSettings, ExplainSettings, LocalizeSettings
from captum_embed import TripletForward
from captum_embed.command_line.networks import chosen_device
from captum_embed.errors import InputError
from captum_embed.weight_bank import encoder_fingerprint
from captum_embed.weight_bank.processes import joined, launched


def table_of_columns(results: Mapping[str, Any], images: ImageTable) -> str:
    """A row per method, a column per figure."""
    table = as_text(table_rows(results, compact=True))
    return f"{table}\n\n±: half of the 95% bootstrap interval over images"


def localize(
    settings: LocalizeSettings,
    table: Callable[[Mapping[str, Any], ImageTable], str] = table_of_columns,
) -> Path:
    """Run the benchmark, or go on with an interrupted run in the same folder.

    Args:
        settings (LocalizeSettings): see each field's help.
        table (Callable): the content of results.json and the images to what is printed.

    Returns:
        Path: of results.json.

    Raises:
        InputError: settings or data that cannot work, before the long part starts.
    """
    select(settings.methods)
    _refuse_impossible(settings)
    refuse_unknown_data(settings)
    rank, count = launched()
    if rank > 0:
        settings = replace(settings, progress=False)
    with ExitStack() as stack:
        # The first process prepares what all of them need, while the others wait to join it.
        processes = stack.enter_context(joined()) if rank > 0 else None
        device = chosen_device(settings.device)
        network = build_network(settings.network, settings.checkpoint, settings.embedding_dim)
        network = network.to(device)
        layer = find_layer(network, settings.layer, settings.layout, settings.prefix_tokens)
        forward = TripletForward(network, margin=settings.margin).eval()
        require_writable_folder(settings.output, "--output")
        data = chosen_data(settings)
        own = identity(settings, network, data, device, threads_of(settings.workers))
        run = stack.enter_context(RunFolder(settings.output, own, rank, count))
        data = survey(data, progress=settings.progress)
        plan = plan_of(settings, device, run.cache)
        works = items_of(settings, plan, network, data)
        if settings.slow_limit is not None:
            plan = replace(plan, slow_keys=slow_keys(settings, works))
        if processes is None:
            prepare(settings, plan, forward, layer, data)
            prepare_networks(settings, plan, data, settings.mark_steps)
            processes = stack.enter_context(joined())
        require_same_works(processes, works)
        with processes.together("measuring images"):
            evaluate(settings, plan, run, works, processes)
        if rank > 0:
            return settings.output / "results.json"
        run.collect()
        return report(settings, plan, run, data, works, table)


def chosen_data(settings: ExplainSettings) -> DataChoice:
    """The images of a run, by its settings; see `choose_data`."""
    return choose_data(
        settings.data,
        settings.train_classes,
        settings.test_classes,
        settings.output / "data",
        settings.seed,
        split=settings.split,
        download=settings.download,
        progress=settings.progress,
    )


def plan_of(settings: ExplainSettings, device: torch.device, cache: Path) -> EvaluationPlan:
    """What an evaluation needs of the settings; `BenchSettings` say more than others."""
    plan = EvaluationPlan(
        network=settings.network,
        checkpoint=settings.checkpoint,
        layer=settings.layer,
        layout=settings.layout,
        prefix_tokens=settings.prefix_tokens,
        methods=tuple(method.name for method in select(settings.methods)),
        protocols=(),
        margin=settings.margin,
        seed=settings.seed,
        device=str(device),
        cache=cache,
        embedding_dim=settings.embedding_dim,
    )
    if isinstance(settings, BenchSettings):
        return replace(
            plan,
            protocols=settings.protocols,
            budget=settings.budget,
            bank_channels=settings.bank_channels,
        )
    return plan


def items_of(
    settings: BenchSettings, plan: EvaluationPlan, network: nn.Module, data: DataChoice
) -> list[Work]:
    """The items of all protocols."""

    @torch.no_grad()
    def embed(images: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = network(images.to(plan.device)).cpu()
        return embeddings

    source = Source(
        data.test.records,
        settings.limit,
        settings.seed,
        embed,
        num_mosaics=settings.num_mosaics,
        train_records=data.train.records,
    )
    return Work.of({name: PROTOCOLS[name].items(source) for name in plan.protocols})


def slow_keys(settings: BenchSettings, works: Sequence[Work]) -> frozenset[str]:
    """The items of each protocol that slow methods are run on."""
    keys: set[str] = set()
    for name in settings.protocols:
        of_protocol = [work for work in works if name in work.items]
        keys.update(work.key for work in sample(of_protocol, settings.slow_limit, settings.seed))
    return frozenset(keys)


def _num_tried(works: Sequence[Work], protocols: Sequence[str]) -> dict[str, int]:
    """How many items were drawn by the protocols that measure only those that are fit."""
    drawn = {
        name: PROTOCOLS[name].num_tried([w.items[name] for w in works if name in w.items])
        for name in protocols
    }
    return {name: tried for name, tried in drawn.items() if tried is not None}


def _refuse_impossible(settings: LocalizeSettings) -> None:
    unknown = [name for name in settings.protocols if name not in PROTOCOLS]
    if unknown:
        raise InputError(f"unknown protocol {', '.join(unknown)}; known: {', '.join(PROTOCOLS)}")
    select([settings.figure_method])
    if settings.minutes is not None and not settings.minutes >= 0:
        raise InputError(f"--minutes is {settings.minutes}; expected 0 or more")
    if not settings.margin >= 0:
        raise InputError(f"--margin is {settings.margin}; expected 0 or more")


def identity(
    settings: ExplainSettings,
    network: nn.Module,
    data: DataChoice,
    device: torch.device,
    threads: int,
) -> dict[str, Any]:
    """What must be equal for two runs to share a folder: all that can change a number or a time.

    Times of two machines, devices or numbers of threads have no common median, so that a run is
    not resumed elsewhere.
    """
    chosen = as_json(settings, only_changing_results=True)
    # Where files lie is not what they hold; core, fast and all may come to mean other methods.
    del chosen["checkpoint"], chosen["data"]
    methods = select(settings.methods)
    chosen["methods"] = [method.name for method in methods]
    chosen["train_classes"] = str(data.train_classes)
    chosen["test_classes"] = str(data.test_classes)
    return {
        **chosen,
        "reductions": {method.name: method.all_reductions for method in methods},
        "workers": getattr(settings, "workers", 1) * launched()[1],
        "threads": threads,
        "device": str(device),
        "machine": machine(str(device)),
        "network_fingerprint": encoder_fingerprint(network),
        "data_digest": data.digest(),
        **{f"version of {name}": number for name, number in package_versions().items()},
    }


def prepare(
    settings: ExplainSettings,
    plan: EvaluationPlan,
    forward: TripletForward,
    layer: nn.Module,
    data: DataChoice,
) -> None:
    """Fill each protocol's cache with what the chosen methods need."""
    methods = select(plan.methods)
    device = torch.device(plan.device)
    for name in plan.protocols:
        if PROTOCOLS[name].networks:
            continue
        cache = ProtocolCache(plan.cache / PROTOCOLS[name].shows)
        mines = not PROTOCOLS[name].brings_references
        needs_tuples = mines and any(method.needs_tuples for method in methods)
        if needs_tuples and not cache.queries.exists():
            query_references(
                forward,
                ShownImages(data.test.records, PROTOCOLS[name]),
                device,
                num_tuples=settings.num_tuples,
                mining=settings.mining,
                seed=settings.seed,
                progress=settings.progress,
            ).save(cache.queries)
        prepare_banks(
            cache,
            methods,
            forward,
            layer,
            ShownImages(data.train.records, PROTOCOLS[name]),
            settings,
        )


def report(
    settings: LocalizeSettings,
    plan: EvaluationPlan,
    run: RunFolder,
    data: DataChoice,
    works: Sequence[Work],
    table: Callable[[Mapping[str, Any], ImageTable], str] = table_of_columns,
) -> Path:
    """Write the results and figures, and print the table and where they are."""
    evaluator = Evaluator(plan)
    images = ImageTable.from_records(run.records())
    about = _about_methods(plan, evaluator.unavailable, images.methods())
    main = main_method(about)
    names = [method["name"] for method in about if not method["unavailable"]]
    tried = _num_tried(works, plan.protocols)
    memory = _peak_memory(settings, evaluator, images, works) if settings.memory else None
    results: dict[str, Any] = {
        **header(),
        "command": as_command(f"benchmarks {settings.command}", settings),
        "settings": as_json(settings),
        "versions": package_versions(),
        "machine": machine(plan.device),
        "device": plan.device,
        "workers": settings.workers * launched()[1],
        "threads": threads_of(settings.workers),
        "identity": run.identity,
        "data": data.as_json(),
        "counts": {
            **images.counts(plan.protocols, unreadable=len(data.unreadable)),
            **({"tried": tried} if tried else {}),
        },
        "methods": about,
        "main_method": main,
        "mark_retrieval": retrieval_of(plan),
        "memory": memory,
        "forward": forward_costs(images, plan.protocols, memory),
        "overheads": overheads(run.records()),
        "figures": declared(plan.protocols),
        "summary": summarize(
            images, names, main, memory=memory, num_resamples=settings.num_resamples
        ),
    }
    paths = write_results(run.path, results, images)
    if settings.figures:
        paths += draw_figures(settings, results, evaluator, images, run, data)
    panels = read_panels(run.path) if settings.figures else None
    paths.append(write_page(run.path, results, panels))
    print(f"\n{table(results, images)}")
    print(counts_text(results["counts"], results["data"]))
    print(forward_text(results["forward"]))
    told = ", ".join(f"{ratio:.2f} ({name})" for name, ratio in results["overheads"].items())
    print(f"an image costs, as a multiple of what its methods compute: {told}")
    titles = {method["name"]: method["title"] for method in results["methods"]}
    for name, reason in evaluator.unavailable.items():
        print(f"not available: {titles[name]}: {reason}")
    print("\n" + "\n".join(str(path) for path in paths))
    return paths[0]


def _peak_memory(
    settings: LocalizeSettings, evaluator: Evaluator, images: ImageTable, works: Sequence[Work]
) -> dict[str, Any] | None:
    """On the largest full-size image; on the largest of another protocol in a run without boxes."""
    bench = _pictured(evaluator)
    shown = images.shown(bench.protocol.name)
    if not shown:
        return None
    largest = max(shown, key=lambda key: shown[key]["width"] * shown[key]["height"])
    (item,) = (work.items[bench.protocol.name] for work in works if work.key == largest)
    path = bench.plan.cache / "memory.json"
    return peak_memory(bench, item, path, progress=settings.progress)


def _pictured(evaluator: Evaluator) -> Bench:
    """The protocol of full-size images, or the first there is."""
    return evaluator.benches.get("boxes") or next(iter(evaluator.benches.values()))


def draw_figures(
    settings: LocalizeSettings,
    results: dict[str, Any],
    evaluator: Evaluator,
    images: ImageTable,
    run: RunFolder,
    data: DataChoice,
) -> list[Path]:
    """The charts, and images of the boxes protocol, or of the first there is."""
    bench = _pictured(evaluator)
    if bench.protocol.brings_references:
        # Its items are no test images, or its maps answer no question that a picture could tell.
        return save_charts(run.path, charts_of(results))
    rows, seed = settings.figure_rows, settings.seed
    write_panels(run.path, bench, data, results, images, rows=rows, seed=seed)
    keys = list(images.shown(bench.protocol.name))
    return save_charts(run.path, charts_of(results)) + write_qualitative(
        run.path, bench, data, keys, method=settings.figure_method, rows=rows, seed=seed
    )


def _about_methods(
    plan: EvaluationPlan, unavailable: dict[str, str], measured: set[str]
) -> list[dict[str, Any]]:
    """The methods, and the floors that some protocol of the run measured."""
    protocols = [PROTOCOLS[name] for name in plan.protocols]
    about: list[dict[str, Any]] = [
        {
            "name": method.name,
            "title": method.title,
            "family": method.family,
            "explains": method.explains,
            "cost": method.cost,
            "reduction": _listed(method.reduction(p.question, signed=p.signed) for p in protocols),
            "unavailable": unavailable.get(method.name),
        }
        for method in select(plan.methods)
    ]
    about += [
        {"name": name, "title": title, "family": "floor", "unavailable": None}
        for name, title in FLOORS.items()
        if name in measured
    ]
    return about


def _listed(reductions: Iterable[Reduction]) -> str:
    return " / ".join(dict.fromkeys(map(str, reductions)))

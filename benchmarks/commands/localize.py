"""``python -m benchmarks localize``: every method, both protocols, one data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.core.device import chosen_device
from benchmarks.core.files import require_writable_folder
from benchmarks.core.settings import (
    as_command,
    as_json,
)
from benchmarks.datasets.choice import (
    DataChoice,
    choose_data,
    survey,
)
from benchmarks.methods import distinct_banks, select
from benchmarks.networks.build import (
    build_network,
    find_layer,
    named_layer,
)
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.report.charts import charts_of, save_charts
from benchmarks.report.cost import forward_costs, with_costs
from benchmarks.report.page import write_page
from benchmarks.report.panels import read_panels
from benchmarks.results.files import header, machine, package_versions, write_results
from benchmarks.results.intervals import main_method, with_intervals
from benchmarks.results.summary import FLOORS, counts, summarize
from benchmarks.results.tables import as_text, counts_text, forward_text, table_rows
from benchmarks.runs.evaluation import EvaluationPlan, Evaluator, sample
from benchmarks.runs.folder import RunFolder, resumable
from benchmarks.runs.localize_settings import LocalizeSettings
from benchmarks.runs.memory import largest_image, peak_memory
from benchmarks.runs.parallel import evaluate_all
from benchmarks.runs.pictures import write_panels, write_qualitative
from benchmarks.runs.preparation import ProtocolCache, ShownImages, mine_queries, prepare_bank
from captum_embed import TripletForward, WeightBank
from captum_embed.errors import InputError
from captum_embed.weight_bank import encoder_fingerprint


def localize(settings: LocalizeSettings) -> Path:
    """Run the benchmark, or go on with an interrupted run in the same folder.

    Args:
        settings (LocalizeSettings): see each field's help.

    Returns:
        Path: of results.json.

    Raises:
        InputError: settings or data that cannot work, before the long part starts.
    """
    methods = select(settings.methods)
    _refuse_impossible(settings)
    device = chosen_device(settings.device)
    network = build_network(settings.network, settings.checkpoint, settings.embedding_dim)
    network = network.to(device)
    layer = find_layer(network, settings.layer)
    forward = TripletForward(network, margin=settings.margin).eval()
    require_writable_folder(settings.output, "--output")
    data = choose_data(
        settings.data,
        settings.train_classes,
        settings.test_classes,
        settings.output / "data",
        settings.seed,
        split=settings.split,
        download=settings.download,
        progress=settings.progress,
    )
    run = RunFolder(settings.output, identity(settings, network, data))
    data = survey(data, progress=settings.progress)
    plan = EvaluationPlan(
        network=settings.network,
        checkpoint=settings.checkpoint,
        layer=settings.layer,
        methods=tuple(method.name for method in methods),
        protocols=settings.protocols,
        margin=settings.margin,
        num_neighbors=settings.num_neighbors,
        seed=settings.seed,
        device=str(device),
        cache=run.cache,
        embedding_dim=settings.embedding_dim,
        budget=settings.budget,
        slow_keys=_slow_keys(settings, data),
    )
    prepare(settings, plan, forward, layer, data)
    evaluate(settings, plan, run, data)
    return report(settings, plan, run, data)


def _slow_keys(settings: LocalizeSettings, data: DataChoice) -> frozenset[str] | None:
    if settings.slow_limit is None:
        return None
    images = sample(data.test.records, settings.limit, settings.seed)
    return frozenset(image.key for image in sample(images, settings.slow_limit, settings.seed))


def _refuse_impossible(settings: LocalizeSettings) -> None:
    unknown = [name for name in settings.protocols if name not in PROTOCOLS]
    if unknown:
        raise InputError(f"unknown protocol {', '.join(unknown)}; known: {', '.join(PROTOCOLS)}")
    select([settings.figure_method])
    if not settings.margin >= 0:
        raise InputError(f"--margin is {settings.margin}; expected 0 or more")


def identity(settings: LocalizeSettings, network: nn.Module, data: DataChoice) -> dict[str, Any]:
    """What must be equal for two runs to share a folder: all that can change a number."""
    chosen = as_json(settings, only_changing_results=True)
    # Where files lie is not what they hold; core, fast and all may come to mean other methods.
    del chosen["checkpoint"], chosen["data"]
    chosen["methods"] = [method.name for method in select(settings.methods)]
    chosen["train_classes"] = str(data.train_classes)
    chosen["test_classes"] = str(data.test_classes)
    return {
        **chosen,
        "network_fingerprint": encoder_fingerprint(network),
        "data_digest": data.digest(),
        **{f"version of {name}": number for name, number in package_versions().items()},
    }


def prepare(
    settings: LocalizeSettings,
    plan: EvaluationPlan,
    forward: TripletForward,
    layer: nn.Module,
    data: DataChoice,
) -> None:
    """Fill each protocol's cache with what the chosen methods need."""
    methods = select(plan.methods)
    device = torch.device(plan.device)
    for name in plan.protocols:
        cache = ProtocolCache(plan.cache / PROTOCOLS[name].shows)
        if any(method.needs_tuples for method in methods) and not cache.queries.exists():
            mine_queries(
                forward,
                ShownImages(data.test.records, PROTOCOLS[name]),
                device,
                num_tuples=settings.num_tuples,
                mining=settings.mining,
                seed=settings.seed,
                progress=settings.progress,
            ).save(cache.queries)
        built: dict[tuple[nn.Module, int, str], WeightBank] = {}
        for spec in distinct_banks(methods):
            bank_layer = named_layer(forward.encoder, layer, spec.layer)
            num_tuples = spec.num_tuples or settings.num_tuples
            mining = spec.mining or settings.mining
            # What is asked for in two ways, by name and as the run says, is built once.
            built[bank_layer, num_tuples, mining] = prepare_bank(
                cache.bank(spec),
                forward,
                bank_layer,
                ShownImages(data.train.records, PROTOCOLS[name]),
                same=built.get((bank_layer, num_tuples, mining)),
                num_tuples=num_tuples,
                mining=mining,
                seed=settings.seed,
                progress=settings.progress,
            )


def evaluate(
    settings: LocalizeSettings, plan: EvaluationPlan, run: RunFolder, data: DataChoice
) -> None:
    """Measure the images that have no record yet."""
    images = sample(data.test.records, settings.limit, settings.seed)
    missing = [image for image in images if image.key not in run.records]
    if len(missing) < len(images):
        print(f"going on: {len(images) - len(missing)} of {len(images)} images are done")
    if not missing:
        return
    bar = tqdm(
        total=len(images),
        initial=len(images) - len(missing),
        desc="test images",
        unit="image",
        disable=not settings.progress,
    )
    with bar:
        for record in evaluate_all(plan, missing, settings.workers):
            run.add(record)
            bar.update()


def report(
    settings: LocalizeSettings, plan: EvaluationPlan, run: RunFolder, data: DataChoice
) -> Path:
    """Write the results and figures, and print the table and where they are."""
    evaluator = Evaluator(plan)
    images = [run.records[key] for key in sorted(run.records)]
    about = _about_methods(plan.methods, evaluator.unavailable)
    main = main_method(about)
    memory = _peak_memory(settings, plan, images, data) if settings.memory else None
    summary = summarize(images, [method["name"] for method in about if not method["unavailable"]])
    summary = with_intervals(summary, images, main, num_resamples=settings.num_resamples)
    results: dict[str, Any] = {
        **header(),
        "command": as_command("benchmarks localize", settings),
        "settings": as_json(settings),
        "versions": package_versions(),
        "threads": torch.get_num_threads(),
        "device": plan.device,
        "machine": machine(plan.device),
        "identity": run.identity,
        "data": data.as_json(),
        "counts": counts(images, plan.protocols, unreadable=len(data.unreadable)),
        "methods": about,
        "main_method": main,
        "memory": memory,
        "forward": forward_costs(images, plan.protocols, memory),
        "summary": with_costs(summary, images, memory),
        "images": images,
    }
    paths = write_results(run.path, results)
    if settings.figures:
        paths += draw_figures(settings, results, evaluator, run, data)
    panels = read_panels(run.path) if settings.figures else None
    paths.append(write_page(run.path, results, panels))
    titles = {method["name"]: method["title"] for method in results["methods"]}
    print(f"\n{as_text(table_rows(results['summary'], titles, compact=True))}\n")
    print("±: half of the 95% bootstrap interval over images")
    print(counts_text(results["counts"], results["data"]))
    print(forward_text(results["forward"]))
    for name, reason in evaluator.unavailable.items():
        print(f"not available: {titles[name]}: {reason}")
    print("\n" + "\n".join(str(path) for path in paths))
    return paths[0]


def _peak_memory(
    settings: LocalizeSettings,
    plan: EvaluationPlan,
    images: list[dict[str, Any]],
    data: DataChoice,
) -> dict[str, Any] | None:
    """On the largest full-size image; on the largest crop where the run has no boxes."""
    protocol = "boxes" if "boxes" in plan.protocols else plan.protocols[0]
    key = largest_image(images, protocol)
    record = next((record for record in data.test.records if record.key == key), None)
    if record is None:
        return None
    return peak_memory(plan, protocol, record, progress=settings.progress)


def draw_figures(
    settings: LocalizeSettings,
    results: dict[str, Any],
    evaluator: Evaluator,
    run: RunFolder,
    data: DataChoice,
) -> list[Path]:
    """The charts, and images of the boxes protocol, or of the first there is."""
    bench = evaluator.benches.get("boxes") or next(iter(evaluator.benches.values()))
    write_panels(run.path, bench, data, results, rows=settings.figure_rows, seed=settings.seed)
    return save_charts(run.path, charts_of(results)) + write_qualitative(
        run.path,
        bench,
        data,
        [image["key"] for image in results["images"] if "protocols" in image],
        method=settings.figure_method,
        rows=settings.figure_rows,
        seed=settings.seed,
    )


def _about_methods(chosen: tuple[str, ...], unavailable: dict[str, str]) -> list[dict[str, Any]]:
    about: list[dict[str, Any]] = [
        {
            "name": method.name,
            "title": method.title,
            "family": method.family,
            "explains": method.explains,
            "cost": method.cost,
            "unavailable": unavailable.get(method.name),
        }
        for method in select(chosen)
    ]
    about += [
        {"name": name, "title": title, "family": "floor", "unavailable": None}
        for name, title in FLOORS.items()
    ]
    return about


def run(settings: LocalizeSettings) -> None:
    with resumable(settings.output):
        localize(settings)


Settings = LocalizeSettings

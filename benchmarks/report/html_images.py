"""The images of the HTML report, with their maps over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report.markup import Markup, join, tag
from benchmarks.report.panels import ImagePanels, MapPanel, Panels, Sides


def images_section(
    results: Mapping[str, Any], panels: Panels | None, pictures: Mapping[str, str]
) -> Markup | None:
    """Images drawn at random and the worst ones; None where there are none.

    Args:
        results (Mapping): content of results.json.
        panels (Panels, optional): images and maps.
        pictures (Mapping): data URI of each of their files.
    """
    if panels is None or not panels.chosen:
        return None
    titles = {method["name"]: method["title"] for method in results["methods"]}
    main = titles.get(results["main_method"])
    # An image that is in both groups is stored once.
    stored = {image.key: image for image in (*panels.chosen, *panels.worst)}
    numbers = {key: index for index, key in enumerate(stored)}
    definitions = [
        tag("image", id=f"image-{numbers[key]}", href=pictures[image.file], width=image.size[0],
            height=image.size[1], preserveAspectRatio="none")
        for key, image in stored.items()
    ]  # fmt: skip

    def group(images: Sequence[ImagePanels]) -> list[Markup]:
        return [_image(one, numbers[one.key], titles, pictures) for one in images]

    measure = "IoU at τ = 0.2" if panels.protocol == "boxes" else "share of the map in the box"
    return join(
        tag("h2", "Maps"),
        tag(
            "p",
            tag("span", class_="box-key true"), " true box, ",
            tag("span", class_="box-key predicted"), " box drawn from the map at τ = 0.2. "
            f"Under each map: {measure}.",
        ),
        tag("p", tag("label", tag("input", type="checkbox", id="overlays", checked=True),
                     " show the maps"), class_="switch"),
        tag("svg", tag("defs", *definitions), class_="definitions", aria_hidden="true"),
        tag("h3", "Drawn at random, one of each class first"),
        tag("div", *group(panels.chosen), class_="images"),
        tag("h3", f"Where {main} does worst") if panels.worst else None,
        tag("div", *group(panels.worst), class_="images"),
    )  # fmt: skip


def _image(
    image: ImagePanels,
    number: int,
    titles: Mapping[str, str],
    pictures: Mapping[str, str],
) -> Markup:
    cells = [_cell(image, number, one, titles[one.method], pictures) for one in image.maps]
    return tag(
        "figure",
        tag("figcaption", tag("b", image.class_name), " ", tag("code", image.key)),
        tag("div", _plain_cell(image, number), *cells, class_="cells", tabindex=0),
    )


def _plain_cell(image: ImagePanels, number: int) -> Markup:
    picture = _picture(image, number, [_box(image.box, "true")], "The image with the true box")
    return tag("div", picture, tag("span", "image", class_="name"), class_="cell")


def _cell(
    image: ImagePanels,
    number: int,
    one: MapPanel,
    title: str,
    pictures: Mapping[str, str],
) -> Markup:
    overlay = tag("image", href=pictures[one.file], width=image.size[0], height=image.size[1],
                  preserveAspectRatio="none", class_="overlay")  # fmt: skip
    boxes = [_box(image.box, "true")]
    if one.predicted is not None:
        boxes.append(_box(one.predicted, "predicted"))
    shown = "not measured" if one.score is None else f"{one.score:.2f}"
    if one.predicted is None:
        shown += ", empty map"
    return tag(
        "div",
        _picture(image, number, [overlay, *boxes], f"Map of {title}: {shown}"),
        tag("span", title, class_="name"),
        tag("span", shown, class_="score"),
        class_="cell",
    )


def _picture(image: ImagePanels, number: int, over: Sequence[Markup], label: str) -> Markup:
    width, height = image.size
    return tag("svg", tag("use", href=f"#image-{number}"), *over, viewBox=f"0 0 {width} {height}",
               role="img", aria_label=label)  # fmt: skip


def _box(sides: Sides, kind: str) -> Markup:
    x0, y0, x1, y1 = (round(side, 1) for side in sides)
    place = {"x": x0, "y": y0, "width": round(x1 - x0, 1), "height": round(y1 - y0, 1)}
    return join(tag("rect", class_="edge", **place), tag("rect", class_=kind, **place))

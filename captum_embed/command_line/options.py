"""The arguments of every command, with their help. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

PROGRAM = "captum-embed"

_ABOUT = """\
Shows what an embedding network sees in photographs: which places speak for a match,
and which against it. No code is needed."""

_EXPLAIN_ABOUT = """\
Draws for each image where the match lies: red places speak for it, blue ones against.

The match is either with images that you give (--reference), or with the images of the same
kind in a weight bank (--bank), or both, one map each. A bank is made once with
`captum-embed bank build`."""

_EXPLAIN_EXAMPLES = """\
examples:
  What makes this photograph like that one?
    captum-embed explain query.jpg --reference hit.jpg --network torchvision:resnet50
  Why did this hit come before that one?
    captum-embed explain query.jpg --reference hit1.jpg --foil hit2.jpg \\
        --network torchvision:resnet50
  A whole folder, with the weights of a bank:
    captum-embed explain photographs/ --bank birds.bank --network torchvision:resnet50
  Your own network: a function `make` in networks.py that returns it, and its weights.
    captum-embed explain query.jpg --reference hit.jpg --network networks:make \\
        --checkpoint trained.safetensors --layer features

what is written to the output folder:
  index.html     a page with everything, to open in a browser or send to someone
  overlays/      one PNG for each map
  maps/          one .npy for each map: signed numbers (rows, columns), as the layer has places
  results.json   scores, neighbours, settings and file names; --json prints the same"""

_BUILD_EXAMPLES = """\
examples:
  A folder with one folder for each class (birds/jay/1.jpg, birds/wren/1.jpg, ...):
    captum-embed bank build birds/ --network torchvision:resnet50 --output birds.bank
  The same, as Chen et al. (WACV 2020) did it:
    captum-embed bank build birds/ --network torchvision:resnet50 --recipe paper \\
        --output birds.bank

The bank remembers the layer and how images were prepared; `explain` and `neighbors` take
both from it."""

_BANK_ABOUT = """\
A weight bank holds, for each training image, its embedding and how much each channel of a
layer counts for its match. New images borrow the weights of their nearest neighbours."""

_EXIT_CODES = """\
exit codes: 0 done; 1 refused, with a message that says why (an unreadable image, an unknown
layer, a bank of another network, ...); 2 wrong usage; 130 interrupted"""


class Parser(argparse.ArgumentParser):
    """Keeps the lines of texts as written, and points to ``--help`` after a mistake."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and ends with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\nSee: {self.prog} --help\n")


def parser() -> Parser:
    """The whole command line. A parsed command's ``module`` is the module that runs it."""
    whole = Parser(
        prog=PROGRAM,
        description=_ABOUT,
        epilog=f"Start with: {PROGRAM} explain --help\n\n{_EXIT_CODES}",
    )
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers(metavar="COMMAND", dest="command")
    explain = _command(
        commands, "explain", "draw what a match rests on", _EXPLAIN_ABOUT, _EXPLAIN_EXAMPLES
    )
    _add_explain(explain)
    bank = commands.add_parser("bank", help="make and look after weight banks")
    bank.description = _BANK_ABOUT
    bank.epilog = _BUILD_EXAMPLES + "\n\n" + _EXIT_CODES
    actions = bank.add_subparsers(metavar="ACTION", dest="action")
    whole.set_defaults(module=None, parser=whole)
    bank.set_defaults(module=None, parser=bank)
    _add_bank_actions(actions)
    return whole


def _command(
    commands: Any, name: str, purpose: str, description: str, epilog: str, module: str = ""
) -> Parser:
    command: Parser = commands.add_parser(name, help=purpose)
    command.description, command.epilog = description, f"{epilog}\n\n{_EXIT_CODES}".strip()
    command.set_defaults(module=module or name, parser=command)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    return command


def _add_explain(explain: Parser) -> None:
    explain.usage = (
        f"{PROGRAM} explain IMAGES... --network NAME\n"
        "           (--reference IMAGE... [--foil IMAGE...] | --bank DIR) [options]"
    )
    _add_images(explain, "image files or folders to explain")
    question = explain.add_argument_group("what is explained (one of the first two, or both)")
    question.add_argument(
        "--reference", nargs="+", metavar="IMAGE", help="images (or folders) that each is like"
    )
    question.add_argument("--bank", metavar="DIR", help="weight bank to borrow weights from")
    question.add_argument(
        "--foil", nargs="+", metavar="IMAGE",
        help="with --reference: what the match is compared with; the maps show what is like the "
        "references rather than the foils",
    )  # fmt: skip
    _add_neighbors(question)
    question.add_argument(
        "--bank-images", metavar="FOLDER",
        help="with --bank: the folder that the bank was built from, to show neighbours on the page",
    )  # fmt: skip
    question.add_argument(
        "--explains", choices=("match", "loss"),
        help="with --bank: what its weights explain (default: the match)",
    )  # fmt: skip
    _add_network(explain)
    _add_output(explain, "explanations", "a folder that this command made before is replaced")


def _add_bank_actions(actions: Any) -> None:
    build = _command(
        actions, "build", "from a folder of classes", _BANK_ABOUT, _BUILD_EXAMPLES, "bank"
    )
    build.add_argument("images", metavar="FOLDER", help="photographs, in one folder for each class")
    loss = build.add_argument_group("what the weights explain")
    loss.add_argument(
        "--explains", choices=("match", "loss"), default="match",
        help="the match (default) or the loss, which is evidence against it",
    )  # fmt: skip
    loss.add_argument(
        "--distance", choices=("squared_euclidean", "euclidean", "cosine"),
        default="squared_euclidean", help="between embeddings (default: %(default)s)",
    )  # fmt: skip
    loss.add_argument(
        "--margin", type=float, default=0.2,
        help="of the triplet loss; with --mining all it has no effect (default: %(default)s)",
    )  # fmt: skip
    loss.add_argument(
        "--mining", choices=("all", "hardest", "random"),
        help="which triplets of each image count (default: the recipe's)",
    )  # fmt: skip
    loss.add_argument("--num-tuples", type=_count, help="triplets of an image, unless all count")
    loss.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    _add_network(build)
    running = build.add_argument_group("running")
    running.add_argument("--batch-size", type=_count, default=32, help="default: %(default)s")
    running.add_argument("--workers", type=int, default=0, help="processes that read images")
    _add_output(build, None, "replace a bank that is there")

    info = _command(actions, "info", "what a bank holds", "Prints what banks hold.", "", "bank")
    info.add_argument("banks", nargs="+", metavar="DIR", help="folder of a bank")
    verify = _command(
        actions, "verify", "is a bank whole?",
        "Reads every byte of banks: checksums, and no NaN or infinite number.", "", "bank",
    )  # fmt: skip
    verify.add_argument("banks", nargs="+", metavar="DIR", help="folder of a bank")
    merge = _command(
        actions, "merge", "one bank of several",
        "Writes one bank with the entries of several, which must be of one network and layer.\n"
        "Classes of one name become one class.",
        "examples:\n  captum-embed bank merge 2024.bank 2025.bank --output all.bank\n"
        "  Add the second to the first, whose files stay as they are:\n"
        "    captum-embed bank merge all.bank 2026.bank --output all.bank --force\n"
        "  A compact copy:\n"
        "    captum-embed bank merge all.bank --top-channels 50 --embeddings float16 \\\n"
        "        --output small.bank",
        "bank",
    )  # fmt: skip
    merge.add_argument("banks", nargs="+", metavar="DIR", help="folder of a bank")
    merge.add_argument(
        "--prefix-keys", action="store_true",
        help="put the name of a bank's folder in front of its keys, where banks share keys",
    )  # fmt: skip
    merge.add_argument(
        "--top-channels", type=_count, metavar="K",
        help="keep the K weights of largest magnitude of each entry, in half precision",
    )  # fmt: skip
    merge.add_argument(
        "--embeddings", choices=("float16", "bfloat16"),
        help="keep embeddings in fewer bits (default: as they are)",
    )  # fmt: skip
    _add_output(merge, None, "replace a bank that is there")
    drop = _command(
        actions, "drop", "take entries out",
        "Takes entries out of a bank, by their keys or classes. Its files stay as they are: the\n"
        "manifest notes which rows are entries no more.",
        "example:\n  captum-embed bank drop birds.bank wren jay/3.png",
        "bank",
    )  # fmt: skip
    drop.add_argument("bank", metavar="DIR", help="folder of the bank")
    drop.add_argument("names", nargs="+", metavar="NAME", help="keys, or classes")
    neighbors = _command(
        actions, "neighbors", "whose weights would be borrowed?",
        "Prints the bank entries nearest to each image: key, class and Euclidean distance.",
        "example:\n  captum-embed bank neighbors query.jpg --bank birds.bank \\\n"
        "      --network torchvision:resnet50",
        "bank",
    )  # fmt: skip
    neighbors.usage = f"{PROGRAM} bank neighbors IMAGES... --bank DIR --network NAME [options]"
    _add_images(neighbors, "image files or folders")
    neighbors.add_argument("--bank", metavar="DIR", required=True, help="folder of the bank")
    _add_neighbors(neighbors)
    _add_network(neighbors)


def _add_images(command: Parser, what: str) -> None:
    command.add_argument("images", nargs="+", metavar="IMAGES", help=what)


def _add_neighbors(where: Any) -> None:
    where.add_argument(
        "--neighbors", type=_count, metavar="K", dest="num_neighbors",
        help="how many entries' weights are averaged (default: the recipe's, and no "
        "more than the bank has of one class)",
    )  # fmt: skip
    where.add_argument(
        "--exclude", nargs="+", metavar="NAME",
        help="keys or classes of bank entries to leave out, such as the image's own",
    )  # fmt: skip


def _add_output(command: Parser, default: str | None, force: str) -> None:
    output = command.add_argument_group("output")
    output.add_argument(
        "--output", metavar="DIR", default=default, required=default is None,
        help="folder to write" + (f" (default: {default})" if default else ""),
    )  # fmt: skip
    output.add_argument(
        "--force", action="store_true",
        help=f"write to a folder that is in use; without it, {force}"
        if default
        else force,
    )  # fmt: skip


def _add_network(command: Parser) -> None:
    network = command.add_argument_group("the network")
    network.add_argument(
        "--network", required=True, metavar="NAME",
        help="torchvision:NAME, timm:NAME, or MODULE:FACTORY, a function without arguments in a "
        "Python file here or installed, which returns a network from images to embeddings",
    )  # fmt: skip
    network.add_argument(
        "--weights", metavar="NAME",
        help="of torchvision and timm: DEFAULT, the pretrained ones, which are downloaded once "
        "(this is the default); another name, such as IMAGENET1K_V1; or random, for untrained",
    )  # fmt: skip
    network.add_argument(
        "--checkpoint", metavar="FILE", help="weights of the network, a safetensors file"
    )
    network.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")
    layer = command.add_argument_group("the layer and the map")
    layer.add_argument(
        "--recipe", choices=("explain", "localize", "transfer", "paper"),
        help="explain: what the match rests on (default, or the bank's); localize: where the "
        "object is; transfer: where a bank sees what raises matches; paper: as Chen et al. "
        "(WACV 2020)",
    )  # fmt: skip
    layer.add_argument(
        "--layer", metavar="NAME", help="dotted name (default: the bank's, or the recipe's)"
    )
    layer.add_argument(
        "--layout", choices=("channels_first", "channels_last", "tokens"),
        help="where the layer has its channels (default: as is known of the layer)",
    )  # fmt: skip
    layer.add_argument(
        "--prefix-tokens", type=int, metavar="N", help="class token and registers, with tokens"
    )
    layer.add_argument(
        "--grid", nargs=2, type=_count, metavar=("ROWS", "COLUMNS"), help="of the other tokens"
    )
    images = command.add_argument_group("how images are prepared (default: as the network wants)")
    images.add_argument("--image-size", type=_count, metavar="PIXELS", help="side of the square")
    images.add_argument(
        "--framing", choices=("crop", "whole", "squash"),
        help="crop: the central square; whole: all of the image in its proportions, for "
        "convolutional networks; squash: all of it, stretched",
    )  # fmt: skip
    for name, what in (("mean", "is subtracted from colours in [0, 1]"), ("std", "divides them")):
        images.add_argument(
            f"--{name}", nargs=3, type=float, metavar=("R", "G", "B"), help=f"what {what}"
        )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


_count.__name__ = "count"


def check(parsed: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
    """Refuses options that do not go together; what argparse cannot tell by itself."""
    given: Callable[[str], Any] = lambda name: getattr(parsed, name, None)  # noqa: E731
    if parsed.module == "explain":
        if not parsed.reference and not parsed.bank:
            refuse("give --reference IMAGE... or --bank DIR: a match is one with something")
        _require_beside(parsed, refuse, "--reference", given("reference"), ("foil",))
        with_bank: Iterable[str] = ("num_neighbors", "exclude", "bank_images", "explains")
        _require_beside(parsed, refuse, "--bank", given("bank"), with_bank)
    if given("weights") and given("checkpoint"):
        refuse("--weights and --checkpoint are both given; give one of them")
    if given("layout") not in (None, "tokens"):
        _require_beside(parsed, refuse, "--layout tokens", None, ("prefix_tokens", "grid"))
    if given("mining") == "all" and given("num_tuples"):
        refuse("--num-tuples says how many triplets are taken, and --mining all takes all")


def _require_beside(
    parsed: argparse.Namespace,
    refuse: Callable[[str], NoReturn],
    needed: str,
    value: Any,
    names: Iterable[str],
) -> None:
    for name in names:
        if not value and getattr(parsed, name) is not None:
            option = "neighbors" if name == "num_neighbors" else name.replace("_", "-")
            refuse(f"--{option} only means something with {needed}")

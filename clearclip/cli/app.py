"""A web page on this machine, to drop pictures on and name things: `clearclip app`."""

import argparse
import contextlib
import errno
import importlib.util
import socket
import threading
from typing import TYPE_CHECKING

from clearclip.cli.options import add_device, add_modules
from clearclip.cli.status import Status
from clearclip.errors import UserError, program

if TYPE_CHECKING:
    from gradio import Blocks

FIRST, TRIED = 7860, 100  # ports that are tried without --port
LOCAL = ("127.0.0.1", "localhost", "::1")


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog,
        description="Serve a page on this machine: drop a picture, name things, see where they are, ask why.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=port, metavar="N", help=f"default: the first from {FIRST} on that is free")
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME", help="names that stand in the page at first")
    parser.add_argument("--method", default="ClearCLIP", help="the page's first choice, see clearclip segment --list")
    parser.add_argument("--backbone", default="ViT-B-16", help="OpenCLIP architecture, or arch:tag")
    parser.add_argument("--pretrained", default="auto", help="weights: a tag, a file, openai-int8, or auto")
    add_device(parser, default="auto")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_modules(parser)
    return parser.parse_args(argv)


def port(text: str) -> int:
    """A port's number, as the type of an option."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, not {text!r}")
    return int(text)


def free_port(host: str, wanted: int | None) -> int:
    """The port to listen at: the one that is wanted, or the first free one.

    Raises UserError where it is taken, where the system refuses it, and for a host that is no address of this machine.
    """
    for number in [wanted] if wanted else range(FIRST, FIRST + TRIED):
        try:
            family, kind, *_, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was left a moment ago is free
                one.bind(address)
            return number
        except PermissionError:
            raise UserError(f"--port {number} is kept for the system; give one from 1024 on") from None
        except (socket.gaierror, UnicodeError):
            raise UserError(f"--host {host} is no address; use 127.0.0.1, or 0.0.0.0 for all that reach here") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"--host {host} is no address of this machine ({error.strerror})") from None
    ports = f"--port {wanted} is" if wanted else f"ports {FIRST} to {FIRST + TRIED - 1} are"
    raise UserError(f"{ports} in use; give another --port")


def start(arguments: argparse.Namespace, status: Status) -> "tuple[Blocks, str]":
    """Serve the page: the page and its address."""
    number = free_port(arguments.host, arguments.port)
    status.say("starting PyTorch")
    from clearclip.app.limits import Limits, read_names
    from clearclip.app.page import build, launch
    from clearclip.app.studio import Studio
    from clearclip.backbones import load_backbone
    from clearclip.registry import import_modules
    from clearclip.spec import Spec

    import_modules(arguments.modules)
    method = str(Spec.parse(arguments.method))
    if arguments.names:
        read_names(arguments.names, Limits())
    status.say(f"loading {arguments.backbone} ({arguments.pretrained})")
    backbone = load_backbone(arguments.backbone, arguments.pretrained, arguments.device, arguments.precision)
    studio = Studio(method, backbone, arguments.device, arguments.precision)
    page = build(studio, arguments.names)
    status.say("starting the page")
    return page, launch(page, studio, arguments.host, number)


def check_gradio() -> None:
    """Raise UserError where the page cannot be built."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the page needs Gradio, which is not installed: pip install "clearclip[app]"')


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    check_gradio()
    with Status(arguments.quiet) as status:
        page, address = start(arguments, status)
        if arguments.host not in LOCAL:
            status.note(f"whoever reaches {arguments.host} can use this page: nothing asks for a password")
    print(f"{address} (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    page.close(verbose=False)

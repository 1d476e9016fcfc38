"""``kvq-ref verify``: hold somebody's attention to the laws."""

from __future__ import annotations

import argparse
import ast
import secrets
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvq_ref.cli import INTERRUPTED, OK, positive, refuse, seed
from kvq_ref.dispatch import FORMS

if TYPE_CHECKING:
    from kvq_ref.testing.child import Job
    from kvq_ref.testing.laws import Law

DESCRIPTION = """\
Hold any attention function to the laws of its form: that it computes what its
definition says, that its gradient is the gradient, that keys may come in any
order, that a mask hides what it should, and so on. Each law is tried on random
calls; the first that breaks it is made as small as possible and shown, with the
likely cause. Errors are measured in units of the best achievable rounding error,
so nothing has to be tuned to a dtype.

The function is called as f(q, k, v, **options), in a process of its own: it may
crash or hang. Usual names of options, such as attn_mask and sm_scale, are known.
"""
EXAMPLES = """\
examples:
  kvq-ref verify torch.nn.functional:scaled_dot_product_attention --form softmax
  kvq-ref verify mypkg.kernels:my_attention --form softmax --framework torch \\
      --layout bthd --device cuda --dtype bfloat16
  kvq-ref verify kernels.py:causal_attention --form softmax --assume is_causal=true
  kvq-ref verify kernels.py:ea --form expressive --backward kernels.py:ea_backward
  kvq-ref verify kernels.py:ea --form expressive --rename mask=visible --drop bias
  kvq-ref verify kernels.py:ea --form expressive --law definition --examples 500
  kvq-ref verify --list --form softmax

exit status: 0 all laws hold, 1 a law is broken, 2 unusable arguments or target
(it cannot be imported, or raises on the plainest call), 130 interrupted.
"""
FRAMEWORKS = ("numpy", "torch", "jax", "cupy")
LAYOUTS = ("any", "bhtd", "bthd", "packed")
DTYPES = ("float64", "float32", "float16", "bfloat16")
ASSUMED = ("is_causal", "scale", "alpha", "feature_map", "normalize")


def verify(options: argparse.Namespace) -> int:
    """The command."""
    from kvq_ref.dispatch import form_name
    from kvq_ref.testing.verify import select

    if options.form is None and not options.list:
        return refuse("verify", f"--form is missing: which form does it claim to be? One of {', '.join(FORMS)}.")
    if options.target is None and not options.list:
        return refuse("verify", "the target is missing; it comes first: kvq-ref verify package.module:function ...")
    try:
        form = None if options.form is None else form_name(options.form)
        laws = select(form or "", options.laws, options.except_for) if form or options.laws else None
    except ValueError as error:
        return refuse("verify", str(error))
    if options.list:
        _list(laws)
        return OK
    assert laws is not None
    for file in (options.json, options.html):
        if file is not None and not file.parent.is_dir():
            return refuse("verify", f"no such folder: {file.parent}")
    return _verify(options, laws)


def _verify(options: argparse.Namespace, laws: list[Law]) -> int:
    from dataclasses import replace

    from kvq_ref.files import write_atomically
    from kvq_ref.testing.isolate import verify_isolated
    from kvq_ref.testing.page import as_html
    from kvq_ref.testing.table import Table

    if options.seed is None:
        options.seed = secrets.randbelow(2**32)
    table = Table([law.name for law in laws], inferred=options.framework is None, verbose=options.verbose)
    try:
        report = verify_isolated(_job(options), table)
    except KeyboardInterrupt:
        table.interrupted()
        print("kvq-ref verify: interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        table.close()
    report = replace(report, command=_command(options))
    try:
        if options.json is not None:
            write_atomically(options.json, report.to_json() + "\n")
        if options.html is not None:
            write_atomically(options.html, as_html(report))
    except OSError as error:
        return refuse("verify", f"{error.filename or 'the report'}: cannot be written ({error.strerror})")
    if report.unusable:
        return refuse("verify", report.unusable)
    table.end(report)
    return report.status


def _job(options: argparse.Namespace) -> Job:
    from kvq_ref.testing.child import Job

    how: dict[str, Any] = {name: getattr(options, name) for name in ("layout", "dtype", "limit")}
    how |= {name: getattr(options, name) for name in ("framework", "device") if getattr(options, name) is not None}
    how |= {"rename": dict(options.rename), "drop": options.drop, "assume": dict(options.assume)}
    how["gradient"] = not options.no_gradient
    return Job(
        target=options.target,
        form=options.form,
        seed=options.seed,
        examples=options.examples,
        strict=options.strict,
        laws=options.laws,
        except_for=options.except_for,
        backward=options.backward or "",
        how=how,
    )


def _command(options: argparse.Namespace) -> str:
    """What repeats it with the same calls: all that was asked for but the files."""
    words = ["kvq-ref", "verify", options.target, "--form", options.form]
    for name in ("framework", "device", "layout", "dtype", "backward", "examples", "limit"):
        if getattr(options, name) != DEFAULTS.get(name):
            words += [f"--{name}", f"{getattr(options, name):g}" if name == "limit" else str(getattr(options, name))]
    for flag, values in (("--rename", options.rename), ("--assume", options.assume)):
        words += [flag, *(f"{name}={value}" for name, value in values)] if values else []
    for flag, values in (("--drop", options.drop), ("--law", options.laws), ("--except", options.except_for)):
        words += [flag, *values] if values else []
    words += ["--no-gradient"] * options.no_gradient + ["--strict"] * options.strict
    return shlex.join([*words, "--seed", str(options.seed)])


def _list(laws: list[Law] | None) -> None:
    from kvq_ref.testing.laws import LAWS

    for law in LAWS if laws is None else laws:
        needs = f" Needs: {', '.join(sorted(law.needs))}." if law.needs else ""
        strict = " Only with --strict." if law.strict else ""
        print(f"{law.name}\n{textwrap.indent(textwrap.fill(law.statement + needs + strict, 84), '    ')}")


# ---- Arguments -----------------------------------------------------------------------


def _renamed(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"expected OPTION=NAME, as in mask=attn_mask, got {text!r}")
    return name, value


def _assumed(text: str) -> tuple[str, Any]:
    """An option and its value: true, false, a number, or a word.

    >>> _assumed("is_causal=true"), _assumed("scale=0.125"), _assumed("feature_map=elu+1")
    (('is_causal', True), ('scale', 0.125), ('feature_map', 'elu+1'))
    """
    name, equals, value = text.partition("=")
    if name not in ASSUMED or not (equals and value):
        raise argparse.ArgumentTypeError(
            f"expected OPTION=VALUE with one of {', '.join(ASSUMED)}, as in is_causal=true, got {text!r}"
        )
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds > 0, got {text}")
    return number


_seconds.__name__ = "number of seconds"  # argparse puts it into its message

DEFAULTS: dict[str, Any] = {"layout": "any", "dtype": "float32", "examples": 50, "limit": 30.0}


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to those of ``kvq-ref``."""
    parser = commands.add_parser(
        "verify",
        help="hold your own attention to the laws",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="kvq-ref verify TARGET --form FORM [options]",
    )
    parser.add_argument("target", nargs="?", metavar="TARGET", help="package.module:function, or file.py:function")
    parser.add_argument("--form", metavar="FORM", help="what it claims to be: softmax, expressive, linear, ...")
    parser.add_argument("--list", action="store_true", help="print the laws (of --form, or all) and do nothing else")

    call = parser.add_argument_group("how to call it")
    call.add_argument("--framework", choices=FRAMEWORKS, help="default: the one that its module imports, else numpy")
    call.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="of q, k, v; packed is one array (B, T, 3, H, d) (default: any, (..., T, d))",
    )
    call.add_argument("--device", metavar="D", help="such as cuda or cuda:1 (default: the library's)")
    call.add_argument("--dtype", choices=DTYPES, help="of the arrays (default: float32)")
    call.add_argument(
        "--rename", type=_renamed, nargs="+", action="extend", default=[], metavar="OPTION=NAME", help="its word for it"
    )
    call.add_argument(
        "--drop", nargs="+", action="extend", default=[], metavar="OPTION", help="options that it is not to be given"
    )
    call.add_argument(
        "--assume",
        type=_assumed,
        nargs="+",
        action="extend",
        default=[],
        metavar="OPTION=VALUE",
        help="what is always so, and not an argument of it",
    )
    call.add_argument("--backward", metavar="TARGET", help="backward(dout, q, k, v, **options) -> dq, dk, dv")
    call.add_argument("--no-gradient", action="store_true", help="it has no gradient")
    call.add_argument("--limit", type=_seconds, metavar="SECONDS", help="a call that takes longer hangs (default: 30)")

    what = parser.add_argument_group("what to check")
    what.add_argument(
        "--law", nargs="+", action="extend", default=[], dest="laws", metavar="LAW", help="check these laws only"
    )
    what.add_argument(
        "--except", nargs="+", action="extend", default=[], dest="except_for", metavar="LAW", help="all but these"
    )
    what.add_argument("--strict", action="store_true", help="also what many sound kernels do not promise")
    what.add_argument("--examples", type=positive, metavar="N", help="calls for each law (default: 50)")
    what.add_argument("--seed", type=seed, metavar="N", help="of all calls (default: a new one, which is printed)")

    told = parser.add_argument_group("the report")
    told.add_argument("--verbose", action="store_true", help="every broken law in full, not the first three")
    told.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON")
    told.add_argument("--html", type=Path, metavar="FILE", help="write it as one HTML page")
    parser.set_defaults(command=verify, **DEFAULTS)

"""What is wrong with a command line of infra/, asked of the program itself where it is at hand.

Jobs and Ray parse it with their own parsers, the AWS command line is derived from botocore's
models as that program does it.  docker, kubectl and sbatch are not here: the few options that we
use are in a table, from their manuals.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import shlex

import botocore.session
import click
from botocore import xform_name

from tests.infra.spelling import ROOT

OPERATORS = {"&&", "||", ";", "|", "&"}
TABLE = {  # program and verb -> options
    "docker build": {"-f", "--target", "-t", "--build-arg"},
    "docker push": set(),
    "kubectl apply": {"-f", "--server-side"},
    "kubectl create": {"-f"},
    "kubectl get": {"-w", "-l", "-o", "--template"},
    "kubectl delete": set(),
    "kubectl logs": {"-f", "-l", "-c"},
    "kubectl port-forward": set(),
    "helm repo": set(),
    "helm install": {"--version"},
    "sbatch": {"--nodes"},
    "prometheus": {"--config.file", "--web.listen-address"},
    "promtool check": set(),
    "promtool test": set(),
}
KINDS = {"rayjob", "raycluster", "pods", "secret"}


def lines_of(script: str) -> list[list[str]]:
    """The simple commands of a script, split into words; comments and continued lines are known."""
    found: list[list[str]] = []
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for token in lexer:
            if token in OPERATORS:
                found.append(words)
                words = []
            else:
                words.append(token)
        found.append(words)
    return [words for words in found if words]


def problems_of(words: list[str]) -> list[str]:
    """Of one simple command."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return []
    program, *rest = words
    if program == "python" and rest[:1] == ["-m"]:
        return job_problems(rest[1], rest[2:])
    if program == "ray":
        return ray_problems(rest)
    if program == "aws":
        return aws_problems(rest)
    if program == "sbatch":
        at = next(i for i, word in enumerate(rest) if word.endswith(".sbatch"))
        return table_problems(program, rest[: at + 1]) + job_problems("jobs.encode", rest[at + 1 :])
    return table_problems(program, rest)


def job_problems(module: str, arguments: list[str]) -> list[str]:
    """One of our jobs, asked to parse it."""
    if not module.startswith("jobs."):
        return [f"{module} is no job"]
    output = io.StringIO()
    try:
        parse = importlib.import_module(module).parse
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            parse(arguments)
    except ImportError as error:
        return [str(error)]
    except SystemExit:
        return [output.getvalue()[-200:]]
    return []


def ray_problems(arguments: list[str]) -> list[str]:
    """Ray's command line, parsed and not run; what a submitted job runs, too."""
    from ray.scripts.scripts import cli

    command: click.Command = cli
    found: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        found, arguments = problems_of(arguments[at + 1 :]), [*arguments[:at], "--", "true"]
    try:
        while True:
            context = command.make_context(str(command.name), list(arguments))
            if not isinstance(command, click.Group):
                return found
            rest = [*context._protected_args, *context.args]
            _, inner, arguments = command.resolve_command(context, rest)
            assert inner is not None
            command = inner
    except click.ClickException as error:
        return [*found, f"ray: {error.format_message()}"]


@functools.cache
def aws_operations(service: str) -> dict[str, set[str]]:
    """Command -> options, as the AWS command line names them."""
    model = botocore.session.get_session().get_service_model(service)
    found = {}
    for name in model.operation_names:
        shape = model.operation_model(name).input_shape
        members = shape.members if shape else {}
        found[xform_name(name, "-")] = {f"--{xform_name(m, '-')}" for m in members}
    return found


def aws_problems(arguments: list[str]) -> list[str]:
    """``aws SERVICE OPERATION --option value``, and the files that it names."""
    service, operation, *rest = arguments
    try:
        options = aws_operations({"s3api": "s3"}.get(service, service)).get(operation)
    except botocore.exceptions.UnknownServiceError:
        return [f"aws {service}"]
    if options is None:
        return [f"aws {service} {operation}"]
    found = [f"aws: {w}" for w in rest if w.startswith("--") and w not in options]
    files = [w.removeprefix("file://") for w in rest if w.startswith("file:")]
    return found + [f"no file {name}" for name in files if not (ROOT / name).is_file()]


def table_problems(program: str, rest: list[str]) -> list[str]:
    """A program that is not here: its verb, its options, its files and kinds."""
    verb = f"{program} {rest[0]}" if rest else program
    options = TABLE.get(verb, TABLE.get(program))
    if options is None:
        return [f"nothing is known of {verb}"]
    found = [f"{verb}: {w}" for w in rest if w.startswith("-") and w.split("=")[0] not in options]
    values = [w.split("=")[-1] for w in rest]
    paths = [w for w in values if re.fullmatch(r"[\w.-]+/[\w./-]+\.\w+|\w+/\w+/Dockerfile", w)]
    found += [f"no file {name}" for name in paths if not (ROOT / name).exists()]
    if program == "kubectl" and rest[0] in ("get", "delete") and rest[1] not in KINDS:
        found.append(f"{verb} {rest[1]}")
    return found

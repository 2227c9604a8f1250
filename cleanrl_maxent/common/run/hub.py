"""Uploads a finished run to the Hugging Face hub: `--upload-model --hf-entity NAME`, with the extra `hub`."""

import os
import re
import shlex
from pathlib import Path

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.errors import UsageError, require
from cleanrl_maxent.common.output import say
from cleanrl_maxent.common.run.card import defining_class, is_ours, program
from cleanrl_maxent.common.run.folder import file_name

FILES = ["README.md", "config.json", "result.json", "policy-*.npz", "videos/*"]
RECORDS = "seed-*/metrics.jsonl"
LONGEST_RECORDS = 10_000_000  # bytes of all seeds' records; longer ones are not uploaded


def repo_id(args: RunArgs) -> str:
    """`{entity}/{env_id}-{exp_name}-seed{seeds}`, without characters that the hub does not allow."""
    seeds = f"{args.seeds[0]}-{args.seeds[-1]}" if args.num_seeds > 1 else f"{args.seed}"
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{file_name(args.env_id)}-{args.exp_name}-seed{seeds}")
    name = re.sub(r"([-.])[-.]+", r"\1", name).strip("-.")
    return f"{args.hf_entity}/{name}"


def check_hub(args: RunArgs) -> None:
    """Raises UsageError if `--upload-model` cannot work: no package, no entity, a bad name, or no token.

    Does not use the network.
    """
    if not args.upload_model:
        return
    try:
        from huggingface_hub import get_token
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError as problem:
        missing = "--upload-model needs huggingface_hub: pip install 'cleanrl_maxent[hub]'"
        raise UsageError(missing) from problem
    require(bool(args.hf_entity), "--upload-model needs --hf-entity, your user or organisation on the hub")
    try:
        validate_repo_id(repo_id(args))
    except HFValidationError as problem:
        raise UsageError(f"the hub does not accept this name: {problem}") from problem
    require(get_token() is not None, "the hub needs a token: run `hf auth login`, or set HF_TOKEN")


def upload_patterns(folder: Path) -> list[str]:
    """The files that are uploaded: never checkpoints; the records only if they are short."""
    records = sum(path.stat().st_size for path in folder.glob(RECORDS))
    return [*FILES, RECORDS] if records <= LONGEST_RECORDS else FILES


def upload(folder: Path, args: RunArgs) -> None:
    """Uploads the finished run in `folder`; a failure prints the command for later and is not raised."""
    try:
        from huggingface_hub import HfApi

        api, name = HfApi(library_name="cleanrl_maxent"), repo_id(args)
        url = api.create_repo(name, exist_ok=True)
        message = f"{args.exp_name} on {args.env_id}"
        patterns = upload_patterns(folder)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=patterns, commit_message=message)
        say(f"uploaded to {url}")
    except Exception as problem:  # whatever it is, the run is complete
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0].rstrip(".")
        flags = ["--resume", str(folder), "--upload-model", "--hf-entity", str(args.hf_entity)]
        command = program(args) if is_ours(args) else ["python", os.path.relpath(defining_class(args)[1])]
        say(f"warning: not uploaded: {reason}; later: {shlex.join([*command, *flags])}")

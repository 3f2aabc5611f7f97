"""Upload a checkpoint with its card to the Hugging Face hub."""

from __future__ import annotations

from mobilebert.publishing.checkpoint import Checkpoint
from mobilebert.util.errors import UserError, one_line, shown

CARD = "README.md"


def check_access() -> None:
    """Raise UserError, one line, if the hub is switched off or there is no token."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("publish: HF_HUB_OFFLINE is set, so nothing is uploaded; unset it, or leave out --push")
    if not get_token():
        raise UserError("publish: no token for the hub; set HF_TOKEN, or run: hf auth login")


def check_name(repo: str) -> None:
    """Raise UserError if the hub takes no repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UserError(f"publish: --owner: the hub takes no repository {shown(repo)}; use letters, digits, - and _") from None


def push(checkpoint: Checkpoint, repo: str, card: str) -> str:
    """Upload a checkpoint's files and its card in one commit; return the commit's address.

    The repository is made, public, if it is missing. Raises UserError, one line, if the hub
    refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    refusals = (*HfHubHTTPError.__bases__, HFValidationError)  # its bases: all errors of the transport, and OSError
    files = {CARD: card.encode()} | {name: str(path) for name, path in (checkpoint.files | checkpoint.int8).items()}
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    message = f"{checkpoint.record.id} of study {checkpoint.record.study}, {checkpoint.record.fingerprint[:16]}"
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        return api.create_commit(repo, operations, commit_message=message).commit_url
    except Exception as error:
        if not isinstance(error, refusals):
            raise
        raise UserError(f"publish: {repo}: {one_line(error)}") from None

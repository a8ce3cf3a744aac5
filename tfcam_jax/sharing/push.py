"""The way of a published folder to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import UserError
from ..models.hub import ANSWER_SECONDS, CONNECT_SECONDS, HUB_ERRORS, check_connection, first_line, hub_address, refusal


class PushError(UserError, RuntimeError):
    """A repository that a model can't be pushed to. The folder is left as it is."""


def check_repository(repository: str) -> None:
    """Raises PushError unless this can be the name of a repository, `owner/name`."""
    try:
        validate_repo_id(repository)
        if repository.count("/") != 1:
            raise HFValidationError("it has no owner" if "/" not in repository else "it has too many parts")
    except HFValidationError as error:
        raise PushError(
            f"--repo={repository} is no name of a repository as owner/name: {first_line(error)}."
        ) from error


def push_folder(folder: Path, names: Sequence[str], repository: str, private: bool) -> str:
    """Makes the repository if need be, and commits these files of a folder; others there stay.

    The token is the environment's HF_TOKEN, or that of `hf auth login`.

    Returns:
      The URL of the repository.

    Raises:
      PushError: no connection, within seconds; no token, or one that may not write there; a repository that is public
        already while a private one was asked for; an upload that failed. What to do is told.
    """
    endpoint = hub_address()
    again = (
        f"The folder {folder} is complete. Then give: launch/publish.py --workdir={folder} --repo={repository} --push"
    )
    if huggingface_hub.get_token() is None:
        raise PushError(f"no token for {endpoint}: run `hf auth login`, or set HF_TOKEN to one that may write. {again}")
    api = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        check_connection(endpoint, CONNECT_SECONDS)
        public = not _is_private(api, repository, absent=private)
        if not (private and public):
            api.create_repo(repository, private=private, exist_ok=True)
            message = "Publish a model trained with tfcam_jax"
            api.upload_folder(
                repo_id=repository, folder_path=folder, allow_patterns=list(names), commit_message=message
            )
    except (*HUB_ERRORS, RuntimeError) as error:  # the client's uploads wrap what they meet in the latter
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        told = f"{repository} was not pushed to {endpoint}: {first_line(cause)}."
        raise PushError(f"{told} {_remedy(cause, repository)} {again}") from error
    if private and public:
        remedy = "give --private=False to push there, or another --repo."
        raise PushError(f"{endpoint}/{repository} exists and is public: {remedy} {again}")
    return f"{endpoint}/{repository}"


def _remedy(error: BaseException, repository: str) -> str:
    status = refusal(error)
    if status in (401, 403):
        owner = repository.partition("/")[0]
        return f"The token is wrong, or may not write to {owner}: make one with the right to write, and log in."
    return "See to the connection." if status is None else "See to the cause."


def _is_private(api: huggingface_hub.HfApi, repository: str, absent: bool) -> bool:
    """Whether a repository is private; `absent` if there is none."""
    try:
        return bool(api.model_info(repository, timeout=ANSWER_SECONDS).private)
    except RepositoryNotFoundError:
        return absent

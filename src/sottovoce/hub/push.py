"""Put a quantized folder or an export on the Hugging Face Hub: private unless asked otherwise, without questions, again after a stop."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from sottovoce.errors import OutputError, SottovoceError, first_line
from sottovoce.hub.staged import runtime_to_push, stage
from sottovoce.system.progress import Progress, silent

OTHER_TYPES = ("dataset", "space")
REFUSED = {
    401: "the Hub does not accept the token; make one that may write (https://huggingface.co/settings/tokens) and log in: hf auth login",
    403: "the token has no right to write there; give a repository of yours, or a token that may write to this one",
    402: "the Hub wants a payment first: the storage of this account is full; delete what is not needed there, or buy more (https://huggingface.co/settings/billing)",
    413: "the Hub takes no file of this size there",
    429: "the Hub takes no more requests for now; run the same command again later",
}


@dataclass(frozen=True, kw_only=True)
class Push:
    """What is on the Hub now. `bytes`: of all files; `left_out`: files of the folder that sottovoce did not write, and that stay here."""

    repo: str
    url: str
    private: bool
    files: int
    bytes: int
    left_out: tuple[str, ...]


def push(source: str | Path, repo: str, *, public: bool = False, token: str | None = None, progress: Progress = silent) -> Push:
    """Upload a quantized folder, or an export, to the model repository `repo` ("OWNER/NAME"; of "NAME", the owner is the token's).

    The repository is made if it is not there, private unless `public`. What the Hub has already is not sent again, so that the same
    call goes on after a stop. A folder that `verify` refuses is not uploaded, nor an export that its runtime does not load. `token`: that
    of `hf auth login` or HF_TOKEN if omitted. Raises `CheckpointError`, `ExportError` or `OutputError`.
    """
    path = Path(source).expanduser()
    check_name(repo)
    runtime = runtime_to_push(path)
    path = path.resolve() if path.is_dir() else path  # "." has no name for the card
    own_token = token or get_token()
    if own_token is None:
        raise OutputError("there is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN to a token that may write")
    api = HfApi(endpoint=constants.ENDPOINT, token=own_token)
    progress("push", 0, 2, "checking")
    with tempfile.TemporaryDirectory(prefix="sottovoce.") as scratch:
        with _told(repo):
            owned = repo if "/" in repo else f"{api.whoami()['name']}/{repo}"
        staged = stage(path, runtime, owned, Path(scratch))
        with _told(owned):
            private = _make_repository(api, owned, public=public)
            progress("push", 1, 2, "uploading")
            api.upload_folder(repo_id=owned, folder_path=scratch, commit_message="Upload by sottovoce")
    progress("push", 2, 2)
    return Push(
        repo=owned,
        url=f"{api.endpoint}/{owned}",
        private=private,
        files=staged.files,
        bytes=staged.bytes,
        left_out=staged.left_out,
    )


def check_name(repo: str) -> None:
    """Raise `OutputError` for what can be no repository's name."""
    try:
        validate_repo_id(repo)
    except HFValidationError as exc:
        raise OutputError(
            f"{repo!r} is no name of a repository on the Hub; wanted OWNER/NAME of letters, digits, '-', '_' and '.'"
        ) from exc


def _make_repository(api: HfApi, repo: str, *, public: bool) -> bool:
    """Make the model repository if it is not there. Return whether it is private. Raises `OutputError` for one that does not suit."""
    try:
        known = api.repo_info(repo)
    except RepositoryNotFoundError as exc:
        if exc.response is not None and exc.response.status_code == 401 and "Invalid" in str(exc):
            raise
        for other in OTHER_TYPES:
            if api.repo_exists(repo, repo_type=other):
                raise OutputError(f"{repo}: is a {other} on the Hub, and a model was to be uploaded; give another name") from exc
        api.create_repo(repo, private=not public, exist_ok=True)
        return not public
    private = bool(known.private)
    if public and private:
        raise OutputError(
            f"{repo}: is private on the Hub, and --public was given; make it public in its settings there, or leave --public out"
        )
    if not public and not private:
        raise OutputError(
            f"{repo}: is public on the Hub, so everybody would see the upload; give --public if that is wanted, or another name"
        )
    return private


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Turn what the Hub and the network raise into an `OutputError` of one sentence."""
    try:
        yield
    except (SottovoceError, KeyboardInterrupt):
        raise
    except OfflineModeIsEnabled as exc:
        raise OutputError(f"{repo}: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it") from exc
    except Exception as exc:  # what the clients of the Hub raise has no common root
        raise OutputError(f"{repo}: {_sentence(exc)}") from exc


def _sentence(exc: BaseException) -> str:
    """Say what went wrong. The client wraps the error of one file into another, so the causes are looked at."""
    chain = list[BaseException]()
    current: BaseException | None = exc
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for error in chain:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
        if status in REFUSED:
            return REFUSED[status]
    if any(_is_transport_error(error) for error in chain):
        return f"{constants.ENDPOINT} cannot be reached, or the connection broke; run the same command again when there is a network"
    return f"the upload failed ({first_line(chain[-1])}); what has arrived is kept, and the same command continues"


def _is_transport_error(error: BaseException) -> bool:
    """Tell whether a connection failed. By name: huggingface_hub speaks HTTP by httpx or httpx2, as its version has it."""
    return isinstance(error, ConnectionError | TimeoutError) or any(kind.__name__ == "TransportError" for kind in type(error).__mro__)

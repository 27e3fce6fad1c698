"""An exported folder on the Hugging Face Hub, by huggingface_hub."""

from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.extras import need


def check_hub(name: str) -> None:
    """Raises UserError where nothing could be pushed: a name that is none, no huggingface_hub, or
    nobody logged in.
    """
    need("huggingface_hub", "--push")
    from huggingface_hub import HfApi
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except ValueError as e:
        raise UserError(f"--push {name}: {e}.") from None
    try:
        HfApi().whoami()
    except Exception as e:  # no token, a stale one, or no way there
        raise UserError(
            f"--push {name}: the Hub does not let you in ({first_line(e)}): run 'hf auth login', "
            "or set HF_TOKEN, and look whether it can be reached."
        ) from None


def push(folder: Path, name: str, message: str) -> str:
    """Upload a folder as one commit; where it is then. A repository that there is not yet becomes
    a private one. Raises UserError where the Hub refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        place = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as e:
        raise UserError(
            f"{folder} is written, and the Hub did not take it ({first_line(e)}): push it again by "
            f"'hf upload {name} {folder}'."
        ) from None
    return place


def first_line(error: Exception) -> str:
    """What an error says, its first line, without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")

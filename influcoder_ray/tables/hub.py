"""How data sets on the Hugging Face Hub are read: what is refused before any work, and what passes.

Files are opened by the hub's own fsspec filesystem; a token comes from `HF_TOKEN` or from `hf auth login`.
"""

import sys
from collections.abc import Collection
from typing import Any

import fsspec

from influcoder_ray.errors import UserError

_SCHEME = "hf://"


def is_hub(uri: str) -> bool:
    return uri.startswith(_SCHEME)


def refuse_unreachable(setting: str, uri: str) -> None:
    """Refuse an address on the hub of which nothing can be read: no such repository, no right to, no hub.

    Raises:
        UserError: with the setting, and what would be right.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    filesystem, path = fsspec.core.url_to_fs(uri)
    try:
        filesystem.invalidate_cache()
        found = filesystem.resolve_path(path)
        if hasattr(found, "repo_id"):
            # The hub describes a gated repository to everybody: its files alone are refused.
            hub = HfApi(endpoint=filesystem.endpoint, token=filesystem.token)
            hub.auth_check(found.repo_id, repo_type=found.repo_type)
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"{setting}: {uri} lies on the hub, and HF_HUB_OFFLINE is set; unset it, or give a copy's folder"
        ) from error
    except GatedRepoError as error:
        raise UserError(
            f"{setting}: {uri} is gated; accept its conditions on the hub, and set HF_TOKEN to a token of "
            "that account"
        ) from error
    except (FileNotFoundError, RepositoryNotFoundError) as error:
        raise UserError(
            f"{setting}: the hub has no {uri}, or shows it to nobody without a token; give "
            "hf://datasets/owner/name/path (or owner/name@revision), and set HF_TOKEN if it is private"
        ) from error
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"{setting}: {uri} is no address on the hub; give hf://datasets/owner/name/path"
        ) from error
    except Exception as error:
        if not isinstance(error, (OSError, *_broken_lines())):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{setting}: {uri} cannot be read from the hub now ({reason}); try again") from error


def fault_passes(error: BaseException, passing: Collection[int]) -> bool | None:
    """Whether a failure to reach the hub may be gone at the next attempt; None of all other failures.

    Args:
        passing: statuses of HTTP that say "not now".
    """
    # Where the hub's library is not loaded nothing can have failed in it.
    if "huggingface_hub" not in sys.modules:
        return None
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in passing
    return True if isinstance(error, _broken_lines()) else None


def content_id(filesystem: Any, path: str) -> str:
    """The hash by which the hub knows a file's content; empty where the hub's listing has none."""
    info = filesystem.info(path)
    return str(info.get("blob_id") or info.get("xet_hash") or "")


def _broken_lines() -> tuple[type[Exception], ...]:
    """What the hub's library raises where no answer comes: its HTTP client's own errors."""
    from huggingface_hub.errors import HfHubHTTPError

    # The client's name differs between versions of the library; its base error does not.
    return tuple(base for base in HfHubHTTPError.__bases__ if base is not OSError)

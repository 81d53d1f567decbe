"""Stores that are not a disk: which addresses they have, and whether they answer."""

from collections.abc import Iterable

from influcoder_ray.tables import hub, s3


def refuse_unreachable(addresses: Iterable[tuple[str, str]], *, busy_seconds: float = 60.0) -> None:
    """Refuse addresses on S3 or on the Hugging Face Hub of which nothing can be listed.

    Args:
        addresses: settings and the addresses that they hold; others than on these stores are left out.
        busy_seconds: how long to ask a server that answers "not now".

    Raises:
        UserError: the first that cannot be used, with its setting.
    """
    for setting, uri in addresses:
        if s3.is_s3(uri):
            s3.refuse_unreachable(setting, uri, busy_seconds)
        elif hub.is_hub(uri):
            hub.refuse_unreachable(setting, uri)

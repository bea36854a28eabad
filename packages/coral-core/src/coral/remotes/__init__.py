"""Somewhere else: repositories in other folders and in object stores. It works on stores, and knows no Repository.

A third party adds a kind of URL by a subclass of `Remote`, an entry point of the group `coral.remotes`, named by the
URL's scheme, and `coral.testing.RemoteTests` to prove it.
"""

from coral.remotes._due import DuePush, add_due, dues, remove_due
from coral.remotes._fetch import Fetched
from coral.remotes._newest import Newest
from coral.remotes._opening import open_remote
from coral.remotes._push import Pushed
from coral.remotes._records import RemoteRecord, is_url
from coral.remotes._remote import Remote, RemoteFile, check_remote_name

__all__ = [
    "DuePush",
    "Fetched",
    "Newest",
    "Pushed",
    "Remote",
    "RemoteFile",
    "RemoteRecord",
    "add_due",
    "check_remote_name",
    "dues",
    "is_url",
    "open_remote",
    "remove_due",
]

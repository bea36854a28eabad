"""CoralHubClient: models of the Hub, of which only what is not here already is fetched."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is public, and says so nowhere

from coral import Commit, DeltaConfig, WeightTensor
from coral.errors import (
    ConfigError,
    CorruptObject,
    EmptyCommit,
    RemoteError,
    RemoteUnreachable,
    UnsafeInput,
    UnsupportedValue,
    printable,
    storage_errors,
)
from coral.integrations.huggingface._cache import Cache
from coral.integrations.huggingface._compare import Comparison, compare
from coral.integrations.huggingface._download import download, read_sidecar
from coral.integrations.huggingface._errors import hub_errors
from coral.integrations.huggingface._models import (
    DownloadStats,
    HubFile,
    ModelInfo,
    Snapshot,
    base_of,
    check_weights,
    weight_files,
)
from coral.integrations.huggingface._repository import upload
from coral.integrations.huggingface._sidecar import NAME, Sidecar
from coral.integrations.huggingface._transfer import Transfer
from coral.integrations.huggingface._upload import INDEX, PACK, Base, model_card, write_model
from coral.objects import clean_weights
from coral.weights import Array

__all__ = ["CoralHubClient", "load_pretrained_efficient"]

_log = logging.getLogger("coral")

_CACHE = "~/.coral/hub"
_SECONDS = 30  # that an answer of the Hub's API may take
_TOKEN = re.compile("[!-~]+")


class CoralHubClient:
    """Downloads models from the Hugging Face Hub, uploads and compares them.

        client = CoralHubClient()
        weights = client.download_model("username/finetuned-bert")
        client.last_download_stats.savings_percent

    What was downloaded is in `cache_dir`, a coral repository: tensors that models share are there once, are not fetched
    again, and can be had without a network. `token` is one of the Hub's, a line end behind it being no part of it; None
    takes the one of `hf auth login`. `delta_config` says how differences are made on upload; `similarity_threshold`,
    where it is given, takes the place of its own. `endpoint` is the address of another Hub; None takes
    huggingface_hub's (HF_ENDPOINT).

    Raises ConfigError, NotARepository, StorageError.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str] = _CACHE,
        token: str | None = None,
        delta_config: DeltaConfig | None = None,
        similarity_threshold: float | None = None,
        *,
        endpoint: str | None = None,
    ) -> None:
        config = delta_config or DeltaConfig()
        if similarity_threshold is not None:
            config = replace(config, similarity_threshold=similarity_threshold)
        self._config = config
        self._api = HfApi(endpoint=endpoint, token=_clean(token), library_name="coral")
        self._cache = Cache(Path(cache_dir).expanduser())
        self._stats: DownloadStats | None = None

    @property
    def last_download_stats(self) -> DownloadStats:
        """What the last `download_model` took. Raises ConfigError before there was one."""
        if self._stats is None:
            raise ConfigError("nothing was downloaded yet: call download_model first")
        return self._stats

    def get_model_info(self, repo_id: str, revision: str | None = None) -> ModelInfo:
        """What the Hub knows of a model. Raises RemoteDenied, RemoteNotFound, RemoteUnreachable."""
        return self._snapshot(repo_id, revision).info

    def download_model(
        self, repo_id: str, base_model: str | None = None, revision: str | None = None
    ) -> Mapping[str, WeightTensor]:
        """The weights of a model: each is read from the cache when its `data` is first asked for.

        Fetched is only what the cache lacks. A delta pack serves where the base that it was made from is in the cache;
        a base that is not is fetched first only if it is named as `base_model`: that pays where there are more models
        made from it. One that cannot be had is warned of. Without a network it is what the cache has.

        Raises RemoteDenied, RemoteNotFound, RemoteUnreachable; UnsupportedValue where there are no safetensors files;
        UnsafeInput for a file that lies about what it holds; CorruptObject for bytes that are not the Hub's.
        """
        commit, self._stats = self._bring(repo_id, revision, base_model)
        return self._cache.load(commit)

    def upload_model(
        self,
        weights: Mapping[str, WeightTensor | Array],
        repo_id: str,
        base_model: str | None = None,
        private: bool = False,
        *,
        commit_message: str = "Upload weights with coral",
        max_shard_size: int = 5_000_000_000,
    ) -> str:
        """Upload weights as a commit to a repository, which is created where there is none; returns its URL.

        They are there as safetensors files that anybody opens, of `max_shard_size` bytes at most. `base_model`, which
        is fetched if it is not in the cache, goes into the model card, and what differs from it into a delta pack.
        Other files stay as they are. Raises EmptyCommit, UnsupportedValue, StorageError, RemoteDenied, RemoteError
        (somebody else committed meanwhile, too; or a .gitignore there leaves out one of the files).
        """
        given = clean_weights(weights)
        if not given:
            raise EmptyCommit("nothing to upload: there is not a single tensor in the weights")
        if max_shard_size < 1:
            raise ConfigError(f"max_shard_size is {max_shard_size!r}; it must be a number of bytes, 1 or more")
        base = self._base(base_model) if base_model is not None else None
        with hub_errors(f"uploading to {repo_id}", repo_id):
            url = str(self._api.create_repo(repo_id, private=private, exist_ok=True))
        before = self._snapshot(repo_id, None)
        with storage_errors(f"uploading to {repo_id}"), TemporaryDirectory(dir=self._cache.incoming) as name:
            folder = Path(name)
            card = model_card(self._card(before, folder), repo_id, base_model)
            written = write_model(folder, given, base, self._config, shard_size=max_shard_size)
            stale = {*before.info.weight_files, INDEX, PACK, NAME} & {*before.files} - {*written.files}
            adds = [CommitOperationAdd(path, folder / path) for path in written.files]
            card_file = CommitOperationAdd("README.md", card.encode())
            with hub_errors(f"uploading to {repo_id}", repo_id):
                upload(self._api, repo_id, [*adds, card_file])
                done = self._api.create_commit(
                    repo_id,
                    [*adds, card_file, *(CommitOperationDelete(path) for path in sorted(stale))],
                    commit_message=commit_message,
                    parent_commit=before.info.revision,
                )
        self._cache.keep(given, repo_id, done.oid, asked=None, files=written.tensors)
        return url

    def compare_models(self, a: str, b: str) -> Comparison:
        """How the weights of two models compare, both of which are downloaded for it."""
        first, second = (self._bring(repo_id, None, None)[0] for repo_id in (a, b))
        return compare(self._cache.load(first), self._cache.load(second), self._config)

    # -- underneath -------------------------------------------------------------------------------------------------

    def _snapshot(self, repo_id: str, revision: str | None) -> Snapshot:
        with hub_errors(f"asking for {repo_id}", repo_id):
            found = self._api.model_info(repo_id, revision=revision, files_metadata=True, timeout=_SECONDS)
        files = {}
        for sibling in found.siblings or ():
            large = sibling.lfs
            path, size = sibling.rfilename, large.size if large else sibling.size or 0
            files[path] = HubFile(path, size, large.sha256 if large else None, sibling.blob_id)
        card = vars(found.card_data) if found.card_data else {}
        info = ModelInfo(
            repo_id=repo_id,
            revision=found.sha or "",
            files=tuple(files),
            base_model=base_of(card, found.tags or ()),
            total_size_bytes=sum(file.size for file in files.values()),
            weight_files=weight_files(files),
        )
        return Snapshot(info, files)

    def _transfer(self, snapshot: Snapshot) -> Transfer:
        headers = build_hf_headers(token=self._api.token, library_name="coral")
        info = snapshot.info
        return Transfer(info.repo_id, info.revision, endpoint=self._api.endpoint, headers=headers)

    def _bring(self, repo_id: str, revision: str | None, base_model: str | None) -> tuple[Commit, DownloadStats]:
        """Have a model in the cache."""
        try:
            snapshot = self._snapshot(repo_id, revision)
        except RemoteUnreachable as error:
            commit = self._cache.find(repo_id, revision)
            if commit is None:
                raise
            _log.warning("%s It is taken from the cache, as it was at %s.", error, commit.metadata.get("revision"))
            return commit, DownloadStats.of(len(self._cache.repo.tree(commit.id)), 0, 0, transferred=0, whole=0)
        info = snapshot.info
        check_weights(info)
        if known := self._cache.find(repo_id, info.revision):
            commit = self._cache.again(known, repo_id, revision)
            whole = sum(snapshot.files[path].size for path in info.weight_files)
            return commit, DownloadStats.of(len(self._cache.repo.tree(commit.id)), 0, 0, transferred=0, whole=whole)
        transfer = self._transfer(snapshot)
        sidecar = read_sidecar(snapshot, transfer, self._cache.incoming)
        base = self._bring_base(repo_id, sidecar, base_model)
        commit, stats = download(self._cache, snapshot, transfer, sidecar, asked=revision)
        return commit, stats if base is None else _together(stats, base)

    def _bring_base(self, repo_id: str, sidecar: Sidecar | None, base_model: str | None) -> DownloadStats | None:
        """Fetch the base that a delta pack needs, if it was named by the user, is not here, and can be had."""
        delta = sidecar.delta if sidecar else None
        if delta is None or self._cache.holds(bases := {id for id in delta.tensors.values() if id}) == bases:
            return None
        named = printable(delta.base_model[:200], lines=False)
        if base_model is None:
            _log.info("with %s in the cache, less would be fetched: name it as base_model", named)
            return None
        if delta.base_model != base_model:
            _log.warning(
                "%s was made from %s, not from %s, which is not fetched: name that as base_model to fetch less",
                repo_id,
                named,
                base_model,
            )
            return None
        try:
            return self._bring(delta.base_model, delta.base_revision, None)[1]
        except (RemoteError, UnsupportedValue, UnsafeInput, CorruptObject) as error:
            _log.warning("%s is fetched without its base %s: %s", repo_id, base_model, error)
            return None

    def _base(self, repo_id: str) -> Base:
        commit, _ = self._bring(repo_id, None, None)
        return Base(repo_id, str(commit.metadata["revision"]), self._cache.load(commit))

    def _card(self, snapshot: Snapshot, folder: Path) -> str | None:
        if "README.md" not in snapshot.files:
            return None
        path = folder / "README.md"
        self._transfer(snapshot).whole(snapshot.files["README.md"], path)
        return path.read_text(encoding="utf-8", errors="replace")


def _clean(token: str | None) -> str | None:
    """A token without what surrounds it, as the line end of the file that it was in; ConfigError if that is none."""
    found = token.strip() if token else token
    if found and not _TOKEN.fullmatch(found):
        raise ConfigError(
            "the token has a blank, a line end or another character in it that no token has: pass nothing but the "
            "token, as it is shown once at https://huggingface.co/settings/tokens"
        )
    return found


def _together(model: DownloadStats, base: DownloadStats) -> DownloadStats:
    """What a model and its base took: the tensors are the model's, the bytes those of both."""
    transferred = model.bytes_downloaded + base.bytes_downloaded
    whole = transferred + model.bytes_saved + base.bytes_saved
    return DownloadStats.of(
        model.total_weights, model.downloaded_full, model.downloaded_delta, transferred=transferred, whole=whole
    )


def load_pretrained_efficient(
    repo_id: str,
    base_model: str | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] = _CACHE,
    token: str | None = None,
) -> Mapping[str, WeightTensor]:
    """The weights of a model on the Hub, as `CoralHubClient.download_model` brings them."""
    return CoralHubClient(cache_dir, token).download_model(repo_id, base_model, revision)

"""What Ray keeps of a search on S3 goes when the search has ended."""

from types import SimpleNamespace

import pytest
from pyarrow.fs import FileSelector

from pipelines.on_ray.driver import ray_storage
from pipelines.search.stage import _remove_folders
from tests.s3_server import point_at, s3_server

pytestmark = [pytest.mark.s3, pytest.mark.timeout(120)]


def test_what_ray_kept_on_s3_goes(tmp_path, monkeypatch):
    with s3_server(tmp_path) as services:
        point_at(services, services.s3_url, monkeypatch)
        monkeypatch.setenv("AGMM_STORE", "s3://agmm/some/place")
        said = []
        search = SimpleNamespace(id="theid", say=said.append)
        place = ray_storage()
        files, root = place["storage_filesystem"], place["storage_path"]
        _remove_folders(search)  # none is there
        for name in ("theid-8f3a", "theid-trial-0001", "other-8f3a"):
            with files.open_output_stream(f"{root}/{name}/t1/tuner.pkl") as file:
                file.write(b"x")
        _remove_folders(search)
        left = [found.path for found in files.get_file_info(FileSelector(root, recursive=True)) if found.is_file]
        assert left == [f"{root}/other-8f3a/t1/tuner.pkl"]
        assert said == []

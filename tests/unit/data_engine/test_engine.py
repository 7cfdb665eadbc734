"""Slices become shards atomically; a repeated command makes only the missing ones, with the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_sample
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from data_engine.annotators import SimulatedAnnotator
from data_engine.engine import check_config, format_summary, hash_config, print_estimate, run_provenance, run_stage
from data_engine.estimate import RunEstimate
from data_engine.ledger import Ledger
from data_engine.run_summary import iterate_evenly_spaced_samples
from data_engine.slices import EngineJob, EngineRunFolder, Worker, with_absolute_paths
from data_engine.sources import open_source
from data_engine.stages import AssistedManual
from data_engine.thresholds import with_checkpoint_thresholds
from sam_train.checkpoint import checkpoint_hash, save_checkpoint
from sam_train.config import build, config_dir, to_plain
from sam_train.errors import ConfigError, SamTrainError, SkipSampleError
from sam_train.records import ImageRecord
from sam_train.rle import decode_rle
from sam_train.shards import decode_jpeg, iterate_samples, load_manifest, write_shard

EASY = [  # thresholds that random weights pass
    "stage.generator.points_per_side=4",
    "stage.generator.pred_iou_thresh=-100",
    "stage.generator.stability_score_thresh=0",
    "stage.generator.max_area_fraction=null",
    "stage.generator.min_region_area_px=0",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_shard(folder / "sa_000000.tar", [make_sample(index) for index in range(5)])
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.manual_seed(0)
    config = OmegaConf.to_container(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml"))
    save_checkpoint(path, build(config), config, {})
    return path


@pytest.fixture
def config(source: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    def made(*overrides: str) -> DictConfig:
        with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
            wanted = [
                "stage=assisted_manual",
                f"source={source}",
                f"out={tmp_path / 'out'}",
                "images_per_shard=2",
                "report=false",
                "privacy=none",
            ]
            return compose("engine", overrides=[*wanted, *overrides])

    return made


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of a run except the ledger, which contains times."""
    paths = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != "ledger.json")
    return {path.name: path.read_bytes() for path in paths}


def records(folder: Path) -> list[ImageRecord]:
    return [sample.record for sample in iterate_samples(sorted(folder.glob("*.tar")))]


def test_slices_become_shards(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    ledger = run_stage(config())
    out = tmp_path / "out"
    names = [f"sa_{number:06d}" for number in range(3)]
    assert set(files(out)) == {
        "engine.json",
        *(f"{name}.{ending}" for name in names for ending in ("tar", "manifest.json", "masks.parquet")),
    }
    assert [load_manifest(out / f"{name}.tar").keys for name in names] == [
        ["sa_000000", "sa_000001"],
        ["sa_000002", "sa_000003"],
        ["sa_000004"],
    ]
    assert (ledger.shards, ledger.images, ledger.masks, ledger.skipped) == (3, 5, 10, {})
    assert ledger.counts == {"clicks": 0, "masks_clicked": 0, "masks_drawn": 10, "seconds": 360, "seconds_by_hand": 360}


def test_overlays_show_the_masks_of_each_image(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    folder = tmp_path / "overlays"
    run_stage(config(f"overlays={folder}"))
    assert sorted(path.name for path in folder.iterdir()) == [f"sa_{number:06d}.jpg" for number in range(5)]
    for sample in iterate_samples(sorted((tmp_path / "out").glob("*.tar"))):
        plain, drawn = decode_jpeg(sample.jpeg), decode_jpeg((folder / f"{sample.record.key}.jpg").read_bytes())
        assert drawn.shape == plain.shape
        inside = decode_rle(sample.record.masks[0].segmentation, height=plain.shape[0], width=plain.shape[1])
        assert np.abs(drawn.astype(int) - plain)[inside].mean() > 10
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    run_stage(config(f"overlays={folder}"))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_first_image_and_num_images_select_part_of_a_source(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_stage(config("first_image=1", "num_images=3"))
    assert [record.key for record in records(tmp_path / "out")] == ["sa_000001", "sa_000002", "sa_000003"]


@pytest.mark.parametrize("missing", [(0,), (1, 2), (0, 1, 2)])
def test_resumes_with_missing_slices_only(
    config: Callable[..., DictConfig], tmp_path: Path, missing: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(config())
    out = tmp_path / "out"
    before = files(out)
    for number in missing:
        (out / f"sa_{number:06d}.manifest.json").unlink()
        (out / f"sa_{number:06d}.tar").write_bytes(b"truncated")  # a tar without a manifest is not done
    (out / "ledger.json").unlink()
    annotate, seen = SimulatedAnnotator.annotate, []
    monkeypatch.setattr(
        SimulatedAnnotator, "annotate", lambda self, image, *rest: seen.append(image.key) or annotate(self, image, *rest)
    )
    run_stage(config())
    assert files(out) == before
    assert len(seen) == sum(2 if number < 2 else 1 for number in missing)


def test_error_in_a_slice_leaves_no_partial_shard(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate = SimulatedAnnotator.annotate

    def until_the_fourth(self: SimulatedAnnotator, image: object, *rest: object) -> object:
        if image.key == "sa_000003":  # type: ignore[attr-defined]
            raise OSError("disk full")
        return annotate(self, image, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SimulatedAnnotator, "annotate", until_the_fourth)
        with pytest.raises(OSError, match="disk full"):
            run_stage(config())
    out = tmp_path / "out"
    assert set(files(out)) == {"engine.json", "sa_000000.tar", "sa_000000.masks.parquet", "sa_000000.manifest.json"}
    run_stage(config())
    assert len(records(out)) == 5


def test_manifest_lists_skipped_images_with_reason(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate = SimulatedAnnotator.annotate

    def not_the_second(self: SimulatedAnnotator, image: object, *rest: object) -> object:
        if image.key == "sa_000001":  # type: ignore[attr-defined]
            raise SkipSampleError("too_dark")
        return annotate(self, image, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(SimulatedAnnotator, "annotate", not_the_second)
    ledger = run_stage(config())
    manifest = load_manifest(tmp_path / "out" / "sa_000000.tar")
    assert (manifest.keys, manifest.skipped) == (["sa_000000"], {"sa_000000.tar/sa_000001.jpg": "too_dark"})
    assert (ledger.images, ledger.skipped) == (4, {"too_dark": 1})


@pytest.mark.parametrize("phase", ["infer", "finish"])
def test_an_exception_in_one_image_is_a_counted_skip(
    config: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    phase: str,
) -> None:
    infer = AssistedManual.infer

    def fails_on_the_second(self: AssistedManual, model: object, image: object) -> object:
        def fail() -> object:
            raise ValueError("an image of 0 x 6")

        if image.key == "sa_000001":  # type: ignore[attr-defined]
            return fail if phase == "finish" else fail()
        return infer(self, model, image)  # type: ignore[arg-type]

    monkeypatch.setattr(AssistedManual, "infer", fails_on_the_second)
    ledger = run_stage(config())
    manifest = load_manifest(tmp_path / "out" / "sa_000000.tar")
    assert (manifest.keys, manifest.skipped) == (["sa_000000"], {"sa_000000.tar/sa_000001.jpg": "annotation_failed"})
    assert (ledger.images, ledger.skipped) == (4, {"annotation_failed": 1})
    assert "sa_000001.jpg is skipped, because its annotation failed" in caplog.text
    assert "ValueError: an image of 0 x 6" in caplog.text


def test_ends_if_every_image_fails(config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: AssistedManual, model: object, image: object) -> object:
        raise ValueError("nothing works")

    monkeypatch.setattr(AssistedManual, "infer", fail)
    monkeypatch.setattr("data_engine.slices.worker.MAX_FAILED", 2)
    with pytest.raises(SamTrainError, match=r"2 images failed one after the other, the last one: .*ValueError: nothing works"):
        run_stage(config())


@pytest.mark.parametrize(
    ("override", "changed"),
    [("stage.annotator.accept_iou=0.5", "config"), ("num_images=4", "config"), ("images_per_shard=3", "config")],
)
def test_rejects_another_config_in_the_same_folder(
    config: Callable[..., DictConfig], tmp_path: Path, override: str, changed: str
) -> None:
    run_stage(config())
    before = files(tmp_path / "out")
    with pytest.raises(ConfigError, match=f"made with another {changed}: choose another out="):
        run_stage(config(override))
    assert files(tmp_path / "out") == before
    run_stage(config("threads=1"))  # decides no byte


def test_rejects_another_model_in_the_same_folder(config: Callable[..., DictConfig], checkpoint: Path) -> None:
    run_stage(config())
    with pytest.raises(ConfigError, match="made with another checkpoint"):
        run_stage(config(f"checkpoint={checkpoint}"))


def test_a_worker_rejects_another_file_behind_the_checkpoint(
    config: Callable[..., DictConfig], checkpoint: Path, tmp_path: Path
) -> None:
    """Its masks would carry the hash of a model that did not predict them."""
    replaced = tmp_path / "model.pt"
    replaced.write_bytes(checkpoint.read_bytes())
    cfg = config(f"checkpoint={replaced}")
    job = EngineJob(config=with_absolute_paths(to_plain(cfg)), provenance=run_provenance(cfg, check_config(cfg)))
    assert Worker(job, device="cpu", threads=None).model is not None
    save_checkpoint(replaced, build(model := to_plain(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml"))), model, {})
    with pytest.raises(ConfigError, match=r"model\.pt has SHA-256 .*, but it had .* when the run started: restore it"):
        _ = Worker(job, device="cpu", threads=None).model


def test_rejects_folder_with_foreign_tars(config: Callable[..., DictConfig], source: Path) -> None:
    with pytest.raises(ConfigError, match="did not write"):
        run_stage(config(f"out={source}"))
    assert "engine.json" not in files(source)


def test_provenance_of_drawn_masks(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_stage(config())
    made_by = json.loads((tmp_path / "out" / "engine.json").read_bytes())
    for record in records(tmp_path / "out"):
        for mask in record.masks:
            assert mask.provenance is not None
            assert (mask.provenance.stage, mask.provenance.annotator) == ("assisted_manual", "simulated")
            assert (mask.provenance.checkpoint, mask.provenance.config) == ("", made_by["config"])
            assert (mask.provenance.prompts, mask.provenance.seconds) == ([], 36)
    assert load_manifest(tmp_path / "out" / "sa_000000.tar").provenance == made_by


def test_annotator_masks_of_zero_seconds_keep_their_annotator(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    free = [f"stage.annotator.seconds_to_{what}=0" for what in ("find", "draw")]
    run_stage(config(*free))
    masks = [mask.provenance for record in records(tmp_path / "out") for mask in record.masks if mask.provenance]
    assert {(p.annotator, p.seconds) for p in masks} == {("simulated", 0)}


def test_provenance_of_generated_masks(config: Callable[..., DictConfig], checkpoint: Path, tmp_path: Path) -> None:
    run_stage(config("stage=fully_automatic", f"checkpoint={checkpoint}", *EASY))
    masks = [mask for record in records(tmp_path / "out") for mask in record.masks]
    assert len(masks) >= 5
    for mask in masks:
        assert mask.provenance is not None
        assert (mask.provenance.stage, mask.provenance.annotator) == ("fully_automatic", "automatic")
        assert (mask.provenance.checkpoint, mask.provenance.seconds) == (checkpoint_hash(checkpoint), 0)
        assert [[x, y] for x, y, _ in mask.provenance.prompts] == mask.point_coords


def test_provenance_of_a_mixed_stage(config: Callable[..., DictConfig], checkpoint: Path, tmp_path: Path) -> None:
    accept = ["stage.annotator.accept_iou=0.01", "stage.annotator.max_masks=99"]  # so that guesses of random weights may pass
    run_stage(config("stage=semi_automatic", f"checkpoint={checkpoint}", *EASY, *accept))
    masks = [mask.provenance for record in records(tmp_path / "out") for mask in record.masks if mask.provenance]
    assert {(p.annotator, p.seconds > 0) for p in masks} <= {("automatic", False), ("simulated", True)}
    assert "automatic" in {p.annotator for p in masks}


def test_provenance_contains_the_parent_mask(config: Callable[..., DictConfig], checkpoint: Path, tmp_path: Path) -> None:
    """Random weights make masks all over the image; without NMS there are many, and some lie in others."""
    nested = ["stage.generator.nested_share=0.3", "stage.generator.box_nms_thresh=1"]
    run_stage(config("stage=fully_automatic", f"checkpoint={checkpoint}", *EASY, *nested))
    chains = 0
    for record in records(tmp_path / "out"):
        masks = {mask.id: decode_rle(mask.segmentation, height=record.height, width=record.width) for mask in record.masks}
        for mask in record.masks:
            assert mask.provenance is not None
            if (parent := mask.provenance.parent) is not None:
                chains += 1
                assert masks[parent].sum() >= mask.area
                assert (masks[parent] & masks[mask.id]).sum() >= 0.3 * mask.area
                assert json.loads(record.to_json()) == json.loads(
                    ImageRecord.from_json(record.to_json(), key=record.key).to_json()
                )
            else:
                assert b'"parent"' not in replace(record, masks=[mask]).to_json()
    assert chains


def test_ids_are_unique_over_images(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_stage(config())
    ids = [mask.id for record in records(tmp_path / "out") for mask in record.masks]
    assert len(set(ids)) == len(ids) == 10
    assert ids[:2] == [0, 1]
    assert ids[2] == 10_000


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Folder of 25 images without masks."""
    folder = tmp_path / "image_folder"
    folder.mkdir()
    for number in range(25):
        (folder / f"{number:02d}.jpg").write_bytes(make_sample(number)[1])
    return folder


def automatic(config: Callable[..., DictConfig], source: Path, checkpoint: Path, *more: str) -> DictConfig:
    return config(
        "stage=fully_automatic",
        f"source={source}",
        f"checkpoint={checkpoint}",
        "images_per_shard=10",
        *EASY,
        "stage.generator.points_per_side=1",
        *more,
    )


def test_the_source_is_listed_once(
    config: Callable[..., DictConfig], image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are added to or removed from the folder during a run do not change the slices."""
    run_stage(automatic(config, image_folder, checkpoint, "slice=0/3"))
    (image_folder / "00_new.jpg").write_bytes(make_sample(99)[1])
    (image_folder / "15.jpg").unlink()
    ledger = run_stage(automatic(config, image_folder, checkpoint))
    assert "resuming with 25 images, listed on 20" in capsys.readouterr().out
    keys = [load_manifest(tmp_path / "out" / f"sa_{number:06d}.tar").keys for number in range(3)]
    assert [key for part in keys for key in part] == [f"{number:02d}" for number in range(25) if number != 15]
    assert (ledger.images, ledger.skipped) == (24, {"missing": 1})


def test_consecutive_unavailable_images_end_the_run(
    config: Callable[..., DictConfig], image_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    run_stage(automatic(config, image_folder, checkpoint, "slice=2/3"))
    moved = image_folder.rename(tmp_path / "elsewhere")
    with pytest.raises(SamTrainError, match="20 consecutive images are unavailable"):
        run_stage(automatic(config, image_folder, checkpoint))
    moved.rename(image_folder)
    assert run_stage(automatic(config, image_folder, checkpoint)).images == 15


@pytest.mark.parametrize("ahead", [0, 3])
def test_prefetching_does_not_change_the_shards(
    config: Callable[..., DictConfig], image_folder: Path, checkpoint: Path, tmp_path: Path, ahead: int
) -> None:
    (image_folder / "05.jpg").write_bytes(b"truncated")
    run_stage(automatic(config, image_folder, checkpoint, f"out={tmp_path / 'expected'}"))
    run_stage(automatic(config, image_folder, checkpoint, f"num_prefetch={ahead}"))
    assert files(tmp_path / "out") == files(tmp_path / "expected")
    assert load_manifest(tmp_path / "out" / "sa_000000.tar").skipped == {"05.jpg": "unsupported_format"}


def test_run_writes_a_report(config: Callable[..., DictConfig], source: Path, tmp_path: Path) -> None:
    run_stage(config("report=true"))
    report = tmp_path / "out" / "report"
    assert sorted(path.name for path in report.iterdir()) == ["contact_sheet.jpg", "stats.html", "stats.json"]
    sheet = decode_jpeg((report / "contact_sheet.jpg").read_bytes())
    assert sheet.shape == (1 * (240 + 18 + 6) + 6, 5 * (320 + 6) + 6, 3), "five images in a row"
    assert json.loads((report / "stats.json").read_bytes())["num_masks"] == 10
    before = (report / "stats.html").stat().st_mtime_ns
    run_stage(config("report=true"))
    assert (report / "stats.html").stat().st_mtime_ns == before, "nothing was done, so nothing is drawn again"
    with_its_pictures = open_source(tmp_path / "out")
    assert len(with_its_pictures.references) == 5, "the folder is still a source for the next stage"


def test_large_runs_are_sampled(tmp_path: Path) -> None:
    for shard in range(4):
        write_shard(tmp_path / f"sa_{shard:06d}.tar", [make_sample(10 * shard + i, num_masks=0) for i in range(shard + 1)])
    shards = sorted(tmp_path.glob("*.tar"))
    ids = [sample.record.image_id for sample in iterate_evenly_spaced_samples(shards, [1, 2, 3, 4], 5)]
    assert ids == [10, 20, 22, 31, 33]
    assert [sample.record.image_id for sample in iterate_evenly_spaced_samples(shards, [1, 2, 3, 4], 99)] == [
        0,
        10,
        11,
        20,
        21,
        22,
        30,
        31,
        32,
        33,
    ]


def test_dry_run_measures_and_writes_nothing(
    config: Callable[..., DictConfig], image_folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "12.jpg").write_bytes(b"truncated")
    dry_run = automatic(config, image_folder, checkpoint, "driver.processes=3", "dry_run=true")
    print_estimate(dry_run)
    assert not (tmp_path / "out").exists()
    output = capsys.readouterr().out
    assert "left: 25 images in 3 slices\nsample of 8: " in output
    assert "3 workers that do not slow each other down: " in output
    run_stage(automatic(config, image_folder, checkpoint, "slice=0/3"))
    capsys.readouterr()
    print_estimate(dry_run)
    assert "left: 15 images in 2 slices" in capsys.readouterr().out
    run_stage(automatic(config, image_folder, checkpoint))
    with pytest.raises(ConfigError, match="nothing to do"):
        print_estimate(dry_run)


def test_estimate_follows_from_the_sample() -> None:
    estimate = RunEstimate(
        num_images=7200,
        num_slices=72,
        seconds=(1.0, 3.0),
        num_masks=20,
        num_bytes=500e3,
        skipped={"unreadable": 1},
        num_workers=4,
    )
    assert (estimate.images_per_second, estimate.hours) == (2.0, 1.0)
    text = str(estimate)
    assert "sample of 2: 2 s per image (1 to 3), 20.0 masks, 500 kB; images skipped: unreadable 1" in text
    assert "2 images/s, 1.0 hours, 3.6 GB" in text


def test_summary_line(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    ledger = run_stage(config())
    ledger = replace(ledger, images_per_machine_second=None)
    assert format_summary(ledger, Path("OUT"), {}) == "OUT: 5 images, 10 masks in 3 shards; images skipped: none"


def test_summary_names_skip_reasons_and_why_no_mask_was_kept() -> None:
    counts = {"dropped/predicted_iou": 90.0, "dropped/stability": 6.0, "masks_automatic": 0.0}
    ledger = Ledger(shards=1, images=2, masks=0, skipped={"unreadable": 1}, counts=counts)
    text = format_summary(ledger, Path("OUT"), {"a": "linked_folder", "b": "linked_folder"})
    assert "images skipped: linked_folder 2, unreadable 1\n" in text
    assert "most were dropped/predicted_iou" in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stage=fully_automatic"], "387a2c5e2b6a"),
        (["stage=fully_automatic", "generator@stage.generator=text_prompts"], "aaee0a45876e"),
        (["stage=semi_automatic", "generator@stage.generator=proposer"], "25f650fe2922"),
    ],
)
def test_config_hash_does_not_depend_on_renames(overrides: list[str], expected: str) -> None:
    """Otherwise run folders of earlier versions could not be resumed."""
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        config = with_checkpoint_thresholds(compose("engine", overrides=[*overrides, "source=a"]))
    assert hash_config(to_plain(config)) == expected


def test_a_process_killed_while_it_refreshes_a_folder_leaves_nothing_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = EngineRunFolder(tmp_path, claim_expires_s=60)
    (tmp_path / ".engine").mkdir()
    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        folder.refresh()
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) == 2, "one file in each of the two folders"
    before = tmp_path.stat().st_mtime_ns
    folder.refresh()
    assert not any(path.exists() for path in left)
    assert tmp_path.stat().st_mtime_ns > before, "the folder has changed, so NFS reads it again"

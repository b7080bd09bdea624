"""Runs on faces from configuration to record: what a bare model starts, the recipe's groups, every kind of data."""

import csv
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor, nn

import eval as evaluation
import train
from drconv.commands import predict
from drconv.compose import config_of_run, typed
from drconv.config import Config, ModelConfig
from drconv.engine.optimizer import parameter_groups
from drconv.errors import ConfigError, DataError
from drconv.interfaces import Facts
from drconv.tasks.identification.data import evaluation_faces, train_faces
from drconv.tasks.identification.drawn import draw_face
from drconv.tasks.identification.embedder import contact_sheet, nearest
from drconv.tasks.identification.pack import pack_folders
from drconv.tasks.identification.task import Embeddings, Identification
from models import create_model

ROOT = Path(__file__).parents[1]
MODELS = ["mobilefacenet", "drconv_mobilefacenet", "condconv_mobilefacenet", "local_mobilefacenet"]
SHORT = [
    *("recipe.steps=2", "recipe.batch_size=4", "recipe.schedule.warmup_steps=0", "recipe.optimizer.lr=0.01"),
    *("logging.wandb=disabled", "runtime.workers=0", "runtime.device=cpu", "runtime.threads=1"),
]


@pytest.fixture
def faces(tmp_path: Path) -> Callable[..., Config]:
    """``faces("model=...")``: a checked configuration with its run below tmp_path."""

    def make(*overrides: str, run: str = "run") -> Config:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return typed(compose("train", [f"run={tmp_path / run}", f"outputs={tmp_path}", *overrides]))

    return make


def run_predict(arguments: list[str]) -> None:
    predict.predict(predict.parse_options(arguments))


def save_faces(folder: Path, first: int, identities: int, each: int, columns: int = 96) -> None:
    for identity in range(first, first + identities):
        for number in range(each):
            path = folder / f"{identity:03}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            face = np.pad(draw_face(identity, number), ((0, 0), ((columns - 96) // 2,) * 2, (0, 0)), mode="edge")
            Image.fromarray(face).save(path, quality=95)


@pytest.mark.parametrize("model", MODELS)
def test_a_bare_model_starts_the_demonstration(model: str, faces: Callable[..., Config]) -> None:
    config = faces(f"model={model}")
    assert (config.task.name, config.recipe.name, config.data.name) == ("identification", *["generated_faces"] * 2)
    assert config.recipe.note is not None
    assert "drawn faces" in config.recipe.note


def test_what_the_user_chooses_wins(faces: Callable[..., Config], tmp_path: Path) -> None:
    root = f"data.root={tmp_path}"
    ours = faces("model=mobilefacenet", "recipe=ms1mv2", root)
    assert (ours.recipe.name, ours.data.name, ours.data.faces.verification[0]) == ("ms1mv2", "ms1mv2", "lfw")
    folders = faces("model=drconv_mobilefacenet", "data=face_folders", root)
    assert (folders.recipe.name, folders.data.name, folders.recipe.note) == ("generated_faces", "face_folders", None)
    both = faces("model=mobilefacenet", "recipe=ms1mv2", "data=generated_faces")
    assert (both.recipe.name, both.data.name) == ("ms1mv2", "generated_faces")
    for wrong, message in (
        (["data=digits"], "does not fit task.name=identification"),
        (["data.faces.window=[1]"], "must be two numbers"),
        (["task.identification.margin_loss=sphere"], "am_softmax, cosface, arcface"),
        (["recipe=digits"], "no effect under task.name=identification"),
    ):
        with pytest.raises(ConfigError, match=message):
            faces("model=mobilefacenet", *wrong)
    with pytest.raises(ConfigError, match=r"does not fit task\.name=classification"):
        faces("model=shufflenetv2_0.5x", "data=face_folders", root)


@pytest.mark.parametrize("model", MODELS)
def test_weight_decay_of_the_recipe(model: str, faces: Callable[..., Config], tmp_path: Path) -> None:
    """4e-5; ten times that on the embedding layer and the class weights; none on PReLU, and on all of them (D6)."""
    config = faces(f"model={model}", "recipe=ms1mv2", f"data.root={tmp_path}")
    task = Identification(create_model(config.model, None, (112, 96)), config, Facts(10, (112, 96)))
    decays = {
        id(parameter): group["weight_decay"]
        for group in parameter_groups(task, config.recipe.optimizer)
        for parameter in group["params"]
    }
    slopes = {id(module.weight) for module in task.modules() if isinstance(module, nn.PReLU)}
    strong = {id(task.network.get_submodule("embedding.2").weight), id(task.head.weight)}  # type: ignore[union-attr]
    assert len(slopes) == 33
    for key, decay in decays.items():
        assert decay == (0 if key in slopes else 4e-4 if key in strong else 4e-5)
    assert config.recipe.schedule.milestones == [252_000, 364_000, 406_000]
    assert (config.recipe.steps, config.recipe.batch_size, config.recipe.optimizer.momentum) == (420_000, 512, 0.9)


def test_a_run_its_evaluation_and_predictions(faces: Callable[..., Config], tmp_path: Path) -> None:
    """Trains on drawn faces, evaluates the file again to the same number, finds nearest faces and writes embeddings."""
    config = faces("model=drconv_mobilefacenet", *SHORT, "data.faces.identities=8", "data.faces.each=2")
    rank1 = train.worker(config)
    result = json.loads((tmp_path / "run/result.json").read_text())
    metrics = result["metrics"]
    assert metrics["gallery/rank1"] == rank1
    assert (metrics["gallery/trials"], metrics["gallery/distractors"]) == (24, 40)
    assert metrics["gallery/rank1"] <= metrics["gallery/rank1_at_10"]
    assert 189.41e6 < result["cost"]["multiply_adds"] < 201e6
    stored = config_of_run([f"run={tmp_path / 'run'}"])
    assert stored is not None
    assert evaluation.worker(stored) == rank1
    save_faces(tmp_path / "probe", 50, 2, 1)
    save_faces(tmp_path / "gallery", 50, 3, 1)
    common = [f"run={tmp_path / 'run'}", f"probe={tmp_path / 'probe'}"]
    run_predict([*common, f"gallery={tmp_path / 'gallery'}", "--count", "3", "--out", str(tmp_path / "m.csv")])
    rows = list(csv.DictReader((tmp_path / "m.csv").open()))
    assert {row["similarity"] for row in rows if row["rank"] == "1"} == {"1.0000"}
    # After two steps other faces can be as near as the same file; that itself is always there.
    own = {row["probe"]: row["similarity"] for row in rows if row["probe"] == row["gallery"]}
    assert own == {"050/0.jpg": "1.0000", "051/0.jpg": "1.0000"}
    assert Image.open(tmp_path / "m.png").size == (4 * 96 + 8, 2 * 126)
    run_predict([*common, "--out", str(tmp_path / "e.npz")])
    assert np.load(tmp_path / "e.npz")["embeddings"].shape == (2, 128)
    with pytest.raises(ConfigError, match=r"must end in \.npz"):
        run_predict([*common, "--out", str(tmp_path / "e.csv")])
    with pytest.raises(ConfigError, match="count=-1 must be 1 or more"):
        run_predict([*common, "--count", "-1", "--out", str(tmp_path / "e.npz")])
    strange = os.path.join(os.fsencode(tmp_path), b"probe", b"\xff.png")
    Image.fromarray(draw_face(7, 0)).save(strange.decode(errors="surrogateescape"), "PNG")
    own = [*common, f"gallery={tmp_path / 'probe'}", "--out"]
    run_predict([*own, str(tmp_path / "new" / "m.csv")])  # the folder is made before the work
    assert b"\xff.png,1," in (tmp_path / "new" / "m.csv").read_bytes()
    original = tmp_path / "probe" / "mine.png"
    Image.fromarray(draw_face(8, 0)).save(original)
    before = original.read_bytes()
    with pytest.raises(ConfigError, match=r"mine\.png would take the place of a picture"):
        run_predict([*own, str(original.with_suffix(".csv"))])
    assert original.read_bytes() == before


def test_a_contact_sheet_shows_as_many_probes_as_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All probes of a large set in one picture took its memory; all scores at once, that of the search."""
    monkeypatch.setattr("drconv.tasks.identification.embedder.MOST_ROWS", 3)
    monkeypatch.setattr("drconv.tasks.identification.embedder._BLOCK", 4)
    save_faces(tmp_path, 1, 1, 1)
    random = np.random.default_rng(0)
    probes, gallery = (random.integers(-3, 4, (count, 3)).astype(np.float32) for count in (10, 30))
    order, scores = nearest(probes, gallery, 7)
    expected = [sorted(range(30), key=list(-row).__getitem__)[:7] for row in probes @ gallery.T]
    assert order.tolist() == expected
    picture = tmp_path / "001" / "0.jpg"
    assert contact_sheet([picture] * 10, [picture] * 30, order, scores).size == (8 * 96 + 8, 3 * 126)


def test_records_and_verification_sets(faces: Callable[..., Config], tmp_path: Path) -> None:
    """MS1M-V2's form with an lfw.bin beside it, whose accuracy is then the headline."""
    save_faces(tmp_path / "in", 0, 4, 2, columns=112)
    pack_folders(tmp_path / "in", tmp_path / "data" / "train.rec")
    pictures = [path.read_bytes() for path in sorted((tmp_path / "in").rglob("*.jpg"))]
    (tmp_path / "data" / "lfw.bin").write_bytes(pickle.dumps((pictures, [True] * 4), protocol=2))
    own = [f"data.root={tmp_path / 'data'}", "data.faces.verification=[lfw]", "experiment.metric=lfw/accuracy"]
    config = faces("model=mobilefacenet", "data=ms1mv2", *SHORT, *own)
    assert train_faces(config.data).facts.num_outputs == 4
    face = train_faces(config.data)[(3, 1)]
    assert (face["image"].shape, face["label"]) == ((3, 112, 96), 1)
    accuracy = train.worker(config)
    metrics = json.loads((tmp_path / "run/result.json").read_text())["metrics"]
    assert metrics["lfw/accuracy"] == accuracy
    assert {"lfw/accuracy_plain", "lfw/std", "lfw/worst_fold", "lfw/threshold_cosine"} <= set(metrics)
    config.data.faces.verification = []
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        evaluation_faces(config.data)


def test_folders_are_checked_before_training(faces: Callable[..., Config], tmp_path: Path) -> None:
    save_faces(tmp_path / "train", 0, 5, 2)
    save_faces(tmp_path / "distractors", 20, 2, 1)
    chosen = ["model=mobilefacenet", "data=face_folders", f"data.root={tmp_path}"]
    config = faces(*chosen, "data.faces.held_out=0.4", "data.faces.distractors=distractors")
    train_set, gallery = train_faces(config.data), evaluation_faces(config.data)["gallery"]
    assert (train_set.facts.num_outputs, len(train_set), len(gallery)) == (3, 6, 6)
    assert sorted(set(train_set.labels.tolist())) == [0, 1, 2]
    faces_of = config.data.faces
    faces_of.distractors = "train"
    with pytest.raises(DataError, match="2 identities stand among the probes"):
        evaluation_faces(config.data)
    faces_of.distractors = "gone"
    with pytest.raises(FileNotFoundError, match=r"gone does not exist; expected .*<identity>/<picture>"):
        evaluation_faces(config.data)
    faces_of.held_out, faces_of.probes = 0.0, "train"
    faces_of.distractors = "distractors"
    with pytest.raises(DataError, match=r"5 identities stand in the training set .* and among the probes .* such as 0"):
        evaluation_faces(config.data)
    save_faces(tmp_path / "one", 90, 1, 2)
    faces_of.probes = "one"
    gallery = evaluation_faces(config.data)["gallery"]
    metric = Embeddings(gallery, flip_test=False)
    metric.update(torch.arange(4), torch.tensor([[1.0, 0.1], [1, 0], [0, 1], [-1, 0]]), None)
    found = metric.compute()  # one identity makes no pair of two for the verification, and ended the run
    assert (found["rank1"], found["trials"], "accuracy" in found) == (100, 2, False)
    faces_of.probes, faces_of.distractors = "distractors", "train"
    with pytest.raises(DataError, match=r"no identity of .* has two pictures"):
        evaluation_faces(config.data)
    (tmp_path / "train/000/0.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"000/0\.jpg"):
        train_faces(config.data)[(0, 0)]
    config.data.augment.crop = "random_resized"
    with pytest.raises(ConfigError, match="would cut aligned faces"):
        train_faces(config.data)


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_batch() -> None:
    network = create_model(ModelConfig("mobilefacenet", conv="drconv"), None, (112, 96)).eval()
    images = torch.randn(7, 3, 112, 96)
    whole = network(images)
    for size in (1, 4):
        parts = torch.cat([network(part) for part in images.split(size)])
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


class Corners(nn.Module):
    """An "embedding" of the four corners' brightness: says how a picture was mirrored."""

    embedding_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]


def test_the_mirror_is_upright(faces: Callable[..., Config], caplog: pytest.LogCaptureFixture) -> None:
    config = faces("model=mobilefacenet", "data.faces.identities=8", "data.faces.flip_test=true")
    dataset = evaluation_faces(config.data)["gallery"]
    task = Identification(Corners(), config, Facts(1000, (112, 96)))
    metric = task.new_metric(torch.device("cpu"), dataset)
    image = torch.zeros(1, 3, 112, 96, dtype=torch.uint8)
    image[..., 0, 0] = 255
    task.evaluate({"image": image, "index": torch.tensor([0])}, metric)
    assert (metric._plain[0] > 0).tolist() == [[True, False, False, False]]
    assert (metric._mirrored[0] > 0).tolist() == [[False, True, False, False]]
    assert "scale=16" not in caplog.text
    config.task.identification.scale = 5
    Identification(Corners(), config, Facts(1000, (112, 96)))
    assert "scale=5 is too small for 1000 classes" in caplog.text

"""The page of a published network, in Markdown, from its record. Imports no torch."""

from typing import Any

from drconv.results.decisions import find_decisions
from drconv.results.deviations import read_deviations
from drconv.results.read_records import Record

MOST_CLASSES = 100  # that are listed by name


def model_card(record: Record, names: list[str], folder: str) -> str:
    """The card.

    Args:
        record: of the run.
        names: of the classes; none for faces.
        folder: its name, as the example opens it.
    """
    content = record.content
    sections = {
        "Open it": _opening(folder, content["config"]["task"]["name"]),
        "What it reached": _reached(record),
        "What it takes": _pixels(content["config"]),
        "Classes": _classes(names),
        "How it was made": _making(content),
        "Where it differs from the paper": _differences(content),
    }
    parts = [f"# {content['experiment'].get('id') or _network(content['config']['model'])}", _summary(content)]
    parts += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(parts) + "\n"


def _network(model: dict[str, Any]) -> str:
    kind = {"standard": "plain", "drconv": f"DRConv, {model['drconv']['regions']} regions"}
    return f"{model['name']} {model['width']:g}x ({kind.get(model['conv'], model['conv'])})"


def _summary(content: dict[str, Any]) -> str:
    cost = content.get("cost")
    size = f", {cost['parameters']:,} parameters, {cost['multiply_adds']:,} multiply-adds" if cost else ""
    return (
        f"{_network(content['config']['model'])}{size}. Trained on {content['config']['data']['name']}; whoever uses "
        f"the weights is bound by the licence of these data."
    )


def _opening(folder: str, task: str) -> str:
    given = {"identification": "probe=pictures gallery=others --out matches.csv"}.get(
        task, "images=pictures --out found"
    )
    return f"""```python
import drconv_models

network = drconv_models.load_model("{folder}")  # in evaluation mode; network.config, network.output_names
```

    drconv predict run={folder} {given}
    drconv eval run={folder} data.root=..."""


def _reached(record: Record) -> str:
    others = {name: value for name, value in record.content["metrics"].items() if name != record.metric}
    rows = [f"| {name} | {'-' if value is None else format(value, '.4g')} |" for name, value in others.items()]
    weights = {"last": "the last checkpoint"}.get(record.content["weights"], "averaged weights")
    lines = ["| metric | value |", "| --- | --- |", f"| **{record.metric}** | **{record.value:.2f}** |", *rows]
    return "\n".join([*lines, "", f"Of {weights}, seed {record.seed}. One run says nothing about the spread."])


def _pixels(config: dict[str, Any]) -> str:
    data, task = config["data"], config["task"]["name"]
    size = {
        "identification": "aligned faces of 112 x 96",
        "detection": f"shorter side {data['coco']['sizes'][-1]}, longer side at most {data['coco']['max_size']}",
    }.get(task, f"shorter side {data['eval_resize']}, centre {data['image_size']} x {data['image_size']}")
    return (
        f"Pixels: {size}, {data['channel_order'].upper()}, from 0 to 255, minus {data['mean']}, over {data['std']} "
        f"(float32, B x 3 x H x W; resized {data['interpolation']})."
    )


def _classes(names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:MOST_CLASSES])
    return shown + (f" and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else "")


def _making(content: dict[str, Any]) -> str:
    recipe, hardware, versions = content["config"]["recipe"], content["hardware"], content.get("versions", {})
    code = content["code"]["commit"] or "unknown"
    lines = [
        f"- {content['steps']:,} steps of {recipe['batch_size']}, learning rate {recipe['optimizer']['lr']:g}, "
        f"{content['wall_time_s'] / 60:.0f} min on {hardware['num_devices']} x {hardware['device']}",
        f"- code {code[:12]}{' with changes' if content['code']['dirty'] else ''}, PyTorch {versions.get('torch')}, "
        f"{content['date']}",
        f"- `{content['command']}`",
    ]
    return "\n".join(lines)


def _differences(content: dict[str, Any]) -> str:
    known = read_deviations()
    found = find_decisions(content["experiment"].get("decisions", []), content["config"]["model"])
    return "\n".join(f"- {id}: {known[id].sentence}" if id in known else f"- {id}" for id in found)

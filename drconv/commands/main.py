"""The command ``drconv``: ``drconv train ...`` is ``python train.py ...`` of a checkout, and so on."""

import difflib
import importlib
import sys

# Module of drconv.commands, and what the command does; imported on use, since torch takes seconds.
COMMANDS = {
    "train": ("train", "trains one network, or several in order (-m)"),
    "sweep": ("sweep", "trains many networks on a pool of devices"),
    "status": ("status", "lists runs: state, step, speed, loss, time left"),
    "eval": ("evaluate", "evaluates saved weights"),
    "tables": ("tables", "records finished runs and makes the tables, the paper's numbers beside ours"),
    "cost": ("cost", "counts multiply-adds and parameters"),
    "masks": ("masks", "draws the regions that a trained network chooses"),
    "export": ("export", "writes a trained network as ONNX, or as a package for C++"),
    "publish": ("publish", "packs a finished run into a folder to give away"),
    "curves": ("curves", "draws the curves of runs"),
    "tradeoff": ("tradeoff", "draws accuracy against cost, the paper's Figure 4"),
    "report": ("report", "makes one page of tables, curves, masks and records"),
    "data": ("data", "checks and indexes picture folders; packs and aligns faces"),
    "predict": ("predict", "says what a trained network makes of your own pictures"),
    "selftest": ("selftest", "holds the kernels of this machine against the reference"),
    "megaface": ("megaface", "computes rank-1 among MegaFace's distractors"),
}


def main() -> int | None:
    """Runs the command that the first argument names with the others; returns its exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(COMMANDS)}"
        print(f"error: drconv {name} is no command; {hint}", file=sys.stderr)
        return 2
    sys.argv = [f"drconv {name}", *sys.argv[2:]]
    return importlib.import_module(f"drconv.commands.{COMMANDS[name][0]}").main()


def usage() -> str:
    """All commands, a line for each."""
    lines = [f"  {name:8}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: drconv COMMAND ...", "", *lines, "", "for example: drconv train model=drconv_shufflenetv2_0.5x"]
    )

"""Tasks: one folder each, with the data, the loss and the metrics that only it needs."""

from drconv.tasks.registry import TASKS, Headline, TaskEntry, find_entry, find_task, register_task

__all__ = ["TASKS", "Headline", "TaskEntry", "find_entry", "find_task", "register_task"]

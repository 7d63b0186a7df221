"""Five tasks as text to be completed: sentiment, paraphrase, NER, questions, summarization. No torch here."""

from collegium.tasks.items import TASKS, Part, Task, TaskItem, part_of


__all__ = ["TASKS", "Part", "Task", "TaskItem", "part_of"]

"""One module a task, with the work that its call does; the tasks with their keys are in rankpo/tasks."""

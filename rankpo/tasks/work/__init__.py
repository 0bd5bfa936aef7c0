"""Modules with the work of each task; the classes with the keys of the tasks are in rankpo/tasks."""

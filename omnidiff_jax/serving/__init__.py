"""Answers over HTTP: the OpenAI wire, requests of all tasks batched together, streamed and cancelled one by one."""

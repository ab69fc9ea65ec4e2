"""Answers from a folder of text files, with Haystack.

    python examples/pipelines/rag_haystack.py faq 'How do I generate random numbers in Python?'

Needs haystack-ai. docs/applications/pipelines.md explains the result.
"""

import argparse
import os
from pathlib import Path

from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.converters import TextFileToDocument
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.components.preprocessors import RecursiveDocumentSplitter
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

PROMPT = """Answer the question from the context only.
{% for passage in passages %}
{{ passage.content }}
{% endfor %}
Question: {{ question }}"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("questions", nargs="+")
parser.add_argument("--server", default="http://127.0.0.1:8125/v1", help="of bert-serving-start")
parser.add_argument("--llm", default="http://127.0.0.1:8100/v1", help="any server with OpenAI's chat completions")
parser.add_argument("--model", default="any", help="of the LLM")
args = parser.parse_args()

server = {"model": "any", "api_base_url": args.server, "api_key": Secret.from_token("any")}
key = Secret.from_token(os.environ.get("OPENAI_API_KEY", "any"))
store = InMemoryDocumentStore(embedding_similarity_function="cosine")

fill = Pipeline()
fill.add_component("read", TextFileToDocument())
fill.add_component(
    "split", RecursiveDocumentSplitter(split_length=500, split_unit="char", separators=["\n\n", " "])
)
fill.add_component("embed", OpenAIDocumentEmbedder(**server, progress_bar=False))
fill.add_component("write", DocumentWriter(store))
for one, next_one in [("read", "split"), ("split", "embed"), ("embed", "write")]:
    fill.connect(one, next_one)
fill.run({"read": {"sources": sorted(args.folder.rglob("*.txt"))}})

ask = Pipeline()
ask.add_component("embed", OpenAITextEmbedder(**server))
ask.add_component("find", InMemoryEmbeddingRetriever(store, top_k=3))
ask.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user(PROMPT)], required_variables="*"))
ask.add_component("answer", OpenAIChatGenerator(api_key=key, model=args.model, api_base_url=args.llm))
ask.connect("embed.embedding", "find.query_embedding")
ask.connect("find.documents", "prompt.passages")
ask.connect("prompt.prompt", "answer.messages")
for question in args.questions:
    done = ask.run({"embed": {"text": question}, "prompt": {"question": question}})
    print(done["answer"]["replies"][0].text)

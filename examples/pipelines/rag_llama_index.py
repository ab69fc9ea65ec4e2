"""Answers from a folder of text files, with LlamaIndex.

    python examples/pipelines/rag_llama_index.py faq 'How do I generate random numbers in Python?'

Needs llama-index-embeddings-openai-like and llama-index-llms-openai-like.
docs/applications/pipelines.md explains the result.
"""

import argparse
import os

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder")
parser.add_argument("questions", nargs="+")
parser.add_argument("--server", default="http://127.0.0.1:8125/v1", help="of bert-serving-start")
parser.add_argument("--llm", default="http://127.0.0.1:8100/v1", help="any server with OpenAI's chat completions")
parser.add_argument("--model", default="any", help="of the LLM")
args = parser.parse_args()

key = os.environ.get("OPENAI_API_KEY", "any")
Settings.llm = OpenAILike(model=args.model, api_base=args.llm, api_key=key, is_chat_model=True)
Settings.embed_model = OpenAILikeEmbedding(model_name="any", api_base=args.server, api_key="any")
Settings.chunk_size, Settings.chunk_overlap = 128, 0  # in tokens of OpenAI's vocabulary

# By default, a passage begins with the path of its file, which would be a part of its vector.
reader = SimpleDirectoryReader(args.folder, required_exts=[".txt"], file_metadata=lambda path: {})
engine = VectorStoreIndex.from_documents(reader.load_data()).as_query_engine(similarity_top_k=3)
for question in args.questions:
    print(engine.query(question))

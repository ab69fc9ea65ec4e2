"""Answers from a folder of text files, with LangChain.

    python examples/pipelines/rag_langchain.py faq 'How do I generate random numbers in Python?'

Needs langchain-openai and langchain-text-splitters. docs/applications/pipelines.md explains the result.
"""

import argparse
import os
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter

PROMPT = """Answer the question from the context only.

{context}

Question: {question}"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("questions", nargs="+")
parser.add_argument("--server", default="http://127.0.0.1:8125/v1", help="of bert-serving-start")
parser.add_argument("--llm", default="http://127.0.0.1:8100/v1", help="any server with OpenAI's chat completions")
parser.add_argument("--model", default="any", help="of the LLM")
args = parser.parse_args()

documents = [Document(path.read_text(encoding="utf-8")) for path in sorted(args.folder.rglob("*.txt"))]
passages = RecursiveCharacterTextSplitter(chunk_size=500, chunk_overlap=0).split_documents(documents)
# Without the last argument, the class sends token ids of OpenAI's vocabulary in place of the texts.
embeddings = OpenAIEmbeddings(model="any", base_url=args.server, api_key="any", check_embedding_ctx_length=False)
store = InMemoryVectorStore.from_documents(passages, embeddings)
retriever = store.as_retriever(search_kwargs={"k": 3})
llm = ChatOpenAI(model=args.model, base_url=args.llm, api_key=os.environ.get("OPENAI_API_KEY", "any"))

context = retriever | (lambda found: "\n\n".join(passage.page_content for passage in found))
prompt = ChatPromptTemplate.from_template(PROMPT)
chain = {"context": context, "question": RunnablePassthrough()} | prompt | llm | StrOutputParser()
for question in args.questions:
    print(chain.invoke(question))

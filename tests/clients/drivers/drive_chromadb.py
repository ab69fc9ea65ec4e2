"""chromadb's function for a Hugging Face embedding server, called directly and by a collection."""

import chromadb
from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer
from told import KEY, TEXTS, URL, say

function = HuggingFaceEmbeddingServer(url=f"{URL}/embed", api_key=KEY)
collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=function)
ids = [str(i) for i in range(len(TEXTS))]
collection.add(ids=ids, documents=TEXTS)
say(
    vectors={
        "call": function(TEXTS),
        "root": HuggingFaceEmbeddingServer(url=URL, api_key=KEY)(TEXTS),
        "collection": collection.get(ids=ids, include=["embeddings"])["embeddings"],
    },
    nearest=[found[0] for found in collection.query(query_texts=TEXTS[:5], n_results=1)["ids"]],
)

// Places texts on a plane, beside the page, so that it stays usable meanwhile. A classic worker, because the two
// libraries define global names.

/* global mlMatrix, UMAP */

const SAME = 1e-5; // what rounding leaves of vectors that are equal
importScripts("vendor/ml-matrix.js", "vendor/umap.js");

onmessage = ({ data: { rows, width } }) => {
  const vectors = [];
  for (let start = 0; start < rows.length; start += width) vectors.push(rows.subarray(start, start + width));
  const isLast = vectors.length <= 3; // UMAP needs neighbours
  postMessage({ method: "PCA", places: principal(vectors), isLast });
  if (!isLast) umap(vectors);
};

/** Return the scores of the two principal components, [x, y, x, y, ...]. */
function principal(vectors) {
  let rest = mlMatrix.Matrix.checkMatrix(vectors.map((each) => Array.from(each))).center("column");
  const places = new Float32Array(2 * vectors.length);
  for (let axis = 0; axis < 2 && rest.norm() > SAME; axis++) {
    const component = new mlMatrix.NIPALS(rest, { maxIterations: 200, terminationCriteria: 1e-6 });
    for (let i = 0; i < vectors.length; i++) places[2 * i + axis] = component.t.get(i, 0);
    rest = component.xResidual;
  }
  return places;
}

function umap(vectors) {
  const model = new UMAP.UMAP({ nNeighbors: Math.min(15, vectors.length - 1), minDist: 0.1, random: seeded(1) });
  const numEpochs = model.initializeFit(vectors);
  for (let epoch = 1; epoch <= numEpochs; epoch++) {
    model.step();
    if (epoch % 20 === 0 && epoch < numEpochs) postMessage({ method: "UMAP", progress: epoch / numEpochs });
  }
  postMessage({ method: "UMAP", places: Float32Array.from(model.getEmbedding().flat()), isLast: true });
}

/** Return a random generator whose numbers are the same each time (xorshift), so that a map can be made again. */
function seeded(seed) {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

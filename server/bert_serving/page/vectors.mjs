// Arithmetic with vectors that lie one after the other in a typed array.

/** Return the rows divided by their lengths, as float32. */
export function unitRows(rows, width) {
  const unit = new Float32Array(rows.length);
  for (let start = 0; start < rows.length; start += width) {
    let square = 0;
    for (let i = start; i < start + width; i++) square += rows[i] * rows[i];
    const length = Math.sqrt(square) || 1;
    for (let i = start; i < start + width; i++) unit[i] = rows[i] / length;
  }
  return unit;
}

/** Return the dot products of one vector with each row. */
export function dots(vector, rows) {
  const width = vector.length;
  const found = new Float32Array(rows.length / width);
  for (let row = 0, i = 0; row < found.length; row++) {
    let sum = 0;
    for (let j = 0; j < width; j++, i++) sum += vector[j] * rows[i];
    found[row] = sum;
  }
  return found;
}

/** Return the similarities of each pair of vectors: an array for each vector.
 *
 * Of numbers, it is the cosine. Of bits, it is 1 if all are equal, 0 if half of them are, -1 if none is. numBits: of a
 * vector; undefined for numbers. */
export function similarities({ rows, width, numBits }) {
  if (numBits !== undefined) return pairs(rows, width, (a, b) => 1 - (2 * differingBits(a, b)) / numBits);
  const unit = unitRows(rows, width);
  return pairs(unit, width, (a, b) => dots(a, b)[0]);
}

function pairs(rows, width, similarity) {
  const num = rows.length / width;
  const row = (i) => rows.subarray(i * width, (i + 1) * width);
  return Array.from({ length: num }, (_, i) => Array.from({ length: num }, (_, j) => similarity(row(i), row(j))));
}

function differingBits(a, b) {
  let number = 0;
  for (let i = 0; i < a.length; i++) for (let bits = a[i] ^ b[i]; bits; bits &= bits - 1) number++;
  return number;
}

/** Return the index of the most similar other vector of each vector. */
export function nearest(matrix) {
  return matrix.map((row, i) =>
    row.reduce((best, value, j) => (j !== i && (best < 0 || value > row[best]) ? j : best), -1),
  );
}

/** Return what pairs of tokens add to the cosine of the means of two texts: an array for each of `rows`.
 *
 * The mean of vectors is a sum, and so is its dot product with another mean: the cosine is exactly the sum of
 * (a · b) / (n m |mean a| |mean b|) over all pairs of a token a of the first text with a token b of the second.
 * rows, columns: the tokens to return; first, second: all tokens. */
export function contributions(rows, columns, first, second) {
  const scale = first.length * second.length * length(mean(first)) * length(mean(second));
  return rows.map((a) => columns.map((b) => dot(a, b) / scale));
}

/** Return the cosine of the means of two lists of vectors. */
export function meanCosine(first, second) {
  const [a, b] = [mean(first), mean(second)];
  return dot(a, b) / (length(a) * length(b));
}

export function mean(vectors) {
  return vectors[0].map((_, i) => vectors.reduce((sum, each) => sum + each[i], 0) / vectors.length);
}

export function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

export function length(vector) {
  return Math.sqrt(dot(vector, vector)) || 1;
}

/** Return the bytes of a file in NumPy's format: (N, width) float32. */
export function npyOf(rows, width) {
  const shape = `(${rows.length / width}, ${width})`;
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': ${shape}, }`;
  const padded = text.padEnd(Math.ceil((10 + text.length + 1) / 64) * 64 - 11) + "\n";
  const head = Uint8Array.from([0x93, ..."NUMPY"].map((c) => (typeof c === "number" ? c : c.charCodeAt(0))));
  return [head, Uint8Array.from([1, 0, padded.length & 255, padded.length >> 8]), padded, rows];
}

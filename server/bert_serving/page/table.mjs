// Reads texts and the columns beside them from what was pasted, and from files.

/* global Papa */

/** Return a row for each line. */
export function rowsOfText(text) {
  return text
    .split(/\r?\n/)
    .filter((line) => line.trim())
    .map((line) => ({ text: line }));
}

/** Return {name, columns, rows} of a file; rows are objects. Throws Error. */
export async function readTable(file) {
  const content = await file.text();
  const rows = rowsOf(file.name.toLowerCase(), content);
  if (!rows.length) throw new Error(`${file.name} has no rows`);
  return { name: file.name, columns: Object.keys(rows[0]), rows };
}

function rowsOf(name, content) {
  if (/\.(jsonl|ndjson)$/.test(name))
    return content
      .split("\n")
      .filter((line) => line.trim())
      .map(rowOfJson);
  if (!/\.(csv|tsv)$/.test(name)) return rowsOfText(content);
  const { data, errors } = Papa.parse(content, { header: true, skipEmptyLines: "greedy" });
  const bad = errors.find(({ type }) => type !== "Delimiter"); // one column has no delimiter
  if (bad) throw new Error(`row ${(bad.row ?? 0) + 1}: ${bad.message}`);
  return data;
}

function rowOfJson(line, index) {
  let value;
  try {
    value = JSON.parse(line);
  } catch {
    throw new Error(`line ${index + 1} is not JSON`);
  }
  return typeof value === "string" ? { text: value } : value;
}

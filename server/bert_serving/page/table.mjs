// Reads texts and the columns beside them from what was pasted, and from files.

/* global Papa */

const SAMPLE = 100; // rows that are looked at to find the columns

/** Return a row for each line. */
export function rowsOfText(text) {
  return text
    .split(/\r?\n/)
    .filter((line) => line.trim())
    .map((line) => ({ text: line }));
}

/** Return {name, columns, rows, textColumn} of a file; rows are objects of strings. Throws Error. */
export async function readTable(file) {
  const rows = rowsOf(file.name.toLowerCase(), await contentOf(file));
  if (!rows.length) throw new Error(`${file.name} has no rows`);
  const columns = [...new Set(rows.slice(0, SAMPLE).flatMap(Object.keys))];
  return { name: file.name, columns, rows, textColumn: textColumnOf(columns, rows) };
}

async function contentOf(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is not a text in UTF-8`);
  }
}

function rowsOf(name, content) {
  if (/\.(jsonl|ndjson)$/.test(name)) return rowsOfJson(content);
  if (/\.(csv|tsv)$/.test(name)) return rowsOfCsv(content);
  return rowsOfText(content);
}

function rowsOfCsv(content) {
  const transformHeader = (header, index) => header.trim() || `column ${index + 1}`; // as that of pandas' index
  const settings = { header: true, skipEmptyLines: "greedy", transformHeader };
  let { data, errors, meta } = Papa.parse(content, settings);
  // Many files with tabs between their columns have no quoting: a text that begins with a quote is no quoted field there.
  if (meta.delimiter === "\t" && errors.some(({ type }) => type === "Quotes"))
    ({ data } = Papa.parse(content, { ...settings, fastMode: true }));
  return data.map(({ __parsed_extra: rest, ...row }) => {
    const columns = Object.keys(row);
    // A file of one column often has commas in its texts, and no quotes.
    return columns.length === 1 && rest ? { [columns[0]]: [row[columns[0]], ...rest].join(",") } : row;
  });
}

function rowsOfJson(content) {
  const lines = content.split("\n").map((line, index) => [line, index + 1]);
  return lines
    .filter(([line]) => line.trim())
    .map(([line, number]) => {
      let value;
      try {
        value = JSON.parse(line);
      } catch {
        throw new Error(`line ${number} is not JSON`);
      }
      const isRow = value !== null && typeof value === "object" && !Array.isArray(value);
      const fields = Object.entries(isRow ? value : { text: value });
      return Object.fromEntries(
        fields.map(([name, each]) => [name, typeof each === "string" ? each : JSON.stringify(each)]),
      );
    });
}

/** Return the column that is named like one of texts, or else the one with the longest values. */
function textColumnOf(columns, rows) {
  const named = columns.find((name) => /^(text|sentence|body|content|title|question)s?$/i.test(name));
  const size = (name) => rows.slice(0, SAMPLE).reduce((sum, row) => sum + (row[name]?.length ?? 0), 0);
  return named ?? columns.reduce((longest, name) => (size(name) > size(longest) ? name : longest));
}

// Attention within a sequence in bfloat16, by AMX's tiles.
//
// Scores and sums are float32; queries, keys, values and weights are bfloat16, as the tiles need them. 32 queries are
// computed at a time. They see the keys in blocks, and running sums are corrected when a block has a larger score. Keys
// are filled up to whole tiles within each sequence, so what a sequence gets does not depend on its company.
//
// A tile of keys has 16 lines of pairs of numbers, one pair for each of 16 keys; a tile of values has 16 lines of pairs
// of keys, one pair for each of 16 columns. This is how the right-hand side of a product must lie.

#include "tile_attention.h"

#ifdef BERT_SERVING_TILES

#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace {

constexpr int64_t kBlock = 32;      // queries, keys or columns that two tiles hold
constexpr int64_t kKeyBlock = 256;  // keys whose scores are in the cache at the same time
constexpr int64_t kMaxQueries = 128;
constexpr float kLog2E = 1.44269504f;
constexpr int64_t kTile = kTileRows * kLine;  // bytes

int64_t up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Multiplies 32 rows by 32 columns, and sums over `depth` pairs of tiles. rows: the tiles of the first 16 rows, then
// those of the next 16. columns: the tile of the first 16 columns; `step` bytes behind it is the next one in depth, and
// `second` bytes behind it the one of the next 16 columns. sums: rows of `stride` bytes.
void multiply(const uint8_t* rows, const uint8_t* columns, int64_t depth, int64_t step, int64_t second, void* sums,
              int64_t stride) {
  order_memory();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; ++k) {
    const uint8_t *a = rows + k * kTile, *b = columns + k * step;
    _tile_loadd(4, a, kLine);
    _tile_loadd(6, b, kLine);
    _tile_loadd(5, a + depth * kTile, kLine);
    _tile_loadd(7, b + second, kLine);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  uint8_t* to = static_cast<uint8_t*>(sums);
  _tile_stored(0, to, stride);
  _tile_stored(1, to + kLine, stride);
  _tile_stored(2, to + kTileRows * stride, stride);
  _tile_stored(3, to + kTileRows * stride + kLine, stride);
  order_memory();
}

// Writes queries first .. first + 31 as tiles: for each 16 of them, one for each 32 columns. A query after the last
// one is the last one again.
void read_queries(const Head& head, int64_t first, int64_t last, uint8_t* to) {
  const int64_t depth = head.width / kBlock;
  for (int64_t i = 0; i < kBlock; ++i) {
    const uint16_t* from = head.queries.data + std::min(first + i, last - 1) * head.queries.token;
    uint8_t* line = to + i / kTileRows * depth * kTile + i % kTileRows * kLine;
    for (int64_t c = 0; c < depth; ++c) std::memcpy(line + c * kTile, from + c * kBlock, kLine);
  }
}

// Writes `count` keys as tiles: for each 16 of them, one for each 32 columns. What is missing at the end is zero.
void read_keys(const Head& head, int64_t first, int64_t count, uint8_t* to) {
  const int64_t depth = head.width / kBlock;
  for (int64_t group = 0; group < up(count, kBlock); group += kTileRows) {
    for (int64_t c = 0; c < depth; ++c, to += kTile) {
      Vec pairs[kLanes];
      for (int64_t i = 0; i < kTileRows; ++i) {
        pairs[i] = Vec{};
        if (group + i < count)
          std::memcpy(&pairs[i], head.keys.data + (first + group + i) * head.keys.token + c * kBlock, kLine);
      }
      transpose(pairs);
      std::memcpy(to, pairs, kTile);
    }
  }
}

// Writes the values of `count` keys as tiles: for each 32 of them, one for each 16 columns. Missing ones are zero.
void read_values(const Head& head, int64_t first, int64_t count, uint8_t* to) {
  const int64_t tiles = head.width / kTileRows;
  const auto row = [&](int64_t key, int64_t tile) {  // 16 numbers, each in 32 bits
    if (key >= count) return _mm512_setzero_si512();
    const uint16_t* from = head.values.data + (first + key) * head.values.token + tile * kTileRows;
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  };
  for (int64_t key = 0; key < up(count, kBlock); key += 2) {
    uint8_t* line = to + key / kBlock * tiles * kTile + key % kBlock / 2 * kLine;
    for (int64_t tile = 0; tile < tiles; ++tile)
      _mm512_store_si512(line + tile * kTile,
                         _mm512_or_si512(row(key, tile), _mm512_slli_epi32(row(key + 1, tile), 16)));
  }
}

// Bits begin .. end - 1 of 32, where either may lie outside of them.
uint32_t bits(int64_t begin, int64_t end) {
  const auto below = [](int64_t x) { return (uint64_t{1} << std::clamp<int64_t>(x, 0, kBlock)) - 1; };
  return static_cast<uint32_t>(below(end) & ~below(begin));
}

// 2^x for x <= 0, with a relative error below 3e-6; rounding a weight to bfloat16 costs 2e-3. NaN for NaN.
Vec power_of_2(Vec x) {
  x = _mm512_max_ps(splat(-126), x);
  const Vec whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = x - whole;
  Vec y = splat(9.570096619e-3f);
  y = y * f + 5.591785908e-2f;
  y = y * f + 2.402474433e-1f;
  y = y * f + 6.931217909e-1f;
  y = y * f + 9.999992847e-1f;
  return _mm512_scalef_ps(y, whole);
}

// What 16 queries have seen so far; a lane for each. keep: what earlier sums are multiplied by after the last block.
struct Seen {
  Vec highest = splat(-INFINITY), total = {}, keep = {};
};

// The keys of a block of `count` that queries see: those from `begin` to `end` - 1 for the first of them, and one further
// for each next one; all if there is no window.
struct Sight {
  int64_t begin, end, count;
  bool has_window;
  uint32_t of(int64_t query, int64_t key) const {
    if (has_window) return bits(begin + query - key, std::min(end + query, count) - key);
    return key + kBlock <= count ? ~0u : bits(0, count - key);
  }
};

// Turns scores of up to 16 queries with a block of keys into weights. scores: `padded` numbers for each query. scale: of
// the scores as exponents of 2. weights: tiles, one for each 32 keys.
void weigh(const float* scores, float scale, int64_t num_queries, const Sight& sight, int64_t padded, uint8_t* weights,
           Seen& seen) {
  Vec rows[kLanes] = {};
  for (int64_t i = 0; i < num_queries; ++i) {
    Vec top = splat(-INFINITY);
    for (int64_t key = 0; key < padded; key += kBlock) {
      const uint32_t visible = sight.of(i, key);
      const float* from = scores + i * padded + key;
      top = _mm512_mask_max_ps(top, static_cast<__mmask16>(visible), top, load(from));
      top = _mm512_mask_max_ps(top, static_cast<__mmask16>(visible >> kLanes), top, load(from + kLanes));
    }
    rows[i] = top;
  }
  const Vec before = seen.highest;
  const Vec top = fold(rows, [](Vec a, Vec b) -> Vec { return _mm512_max_ps(a, b); }) * scale;
  seen.highest = _mm512_max_ps(top, before);
  // A query that has seen no key yet has -infinity, and infinity minus infinity is no number.
  const Vec base = seen.highest == -INFINITY ? Vec{} : seen.highest;
  alignas(kLine) float bases[kLanes];
  store(bases, base);
  for (int64_t i = 0; i < num_queries; ++i) {
    Vec sum = {};
    for (int64_t key = 0; key < padded; key += kBlock) {
      const uint32_t visible = sight.of(i, key);
      const float* from = scores + i * padded + key;
      const Vec a = power_of_2(load(from) * scale - splat(bases[i]));
      const Vec b = power_of_2(load(from + kLanes) * scale - splat(bases[i]));
      const Vec first = _mm512_maskz_mov_ps(static_cast<__mmask16>(visible), a);
      const Vec second = _mm512_maskz_mov_ps(static_cast<__mmask16>(visible >> kLanes), b);
      sum += first + second;
      const __m512bh rounded = _mm512_cvtne2ps_pbh(second, first);
      std::memcpy(weights + key / kBlock * kTile + i * kLine, &rounded, sizeof rounded);
    }
    rows[i] = sum;
  }
  seen.keep = power_of_2(before - base);
  seen.total = seen.total * seen.keep + fold(rows, [](Vec a, Vec b) { return a + b; });
}

}  // namespace

void attend_in_tiles(const Head& head, int64_t first, int64_t last, TileScratch& scratch) {
  const int64_t width = head.width, depth = width / kBlock;
  const int64_t reach = head.window > 0 ? head.window - 1 : head.length;
  const int64_t begin = std::max<int64_t>(0, first - reach), end = std::min(head.length, last + reach);
  const int64_t most = up(std::min(kKeyBlock, end - begin), kBlock);
  scratch.queries.fit(kBlock * width * 2);
  scratch.keys.fit(most * width * 2);
  scratch.values.fit(most * width * 2);
  scratch.scores.fit(kBlock * most * 4);
  scratch.weights.fit(kBlock * most * 2);
  scratch.products.fit(kBlock * kBlock * 4);
  scratch.sums.fit(kMaxQueries * width * 4);
  uint8_t *queries = scratch.queries.begin(), *keys = scratch.keys.begin(), *values = scratch.values.begin();
  uint8_t* weights = scratch.weights.begin();
  float* scores = reinterpret_cast<float*>(scratch.scores.begin());
  float* products = reinterpret_cast<float*>(scratch.products.begin());
  float* sums = reinterpret_cast<float*>(scratch.sums.begin());

  Seen seen[kMaxQueries / kLanes];
  for (int64_t key = begin; key < end; key += kKeyBlock) {
    const int64_t count = std::min(kKeyBlock, end - key), padded = up(count, kBlock), blocks = padded / kBlock;
    const bool is_first = key == begin, is_last = key + count == end;
    read_keys(head, key, count, keys);
    for (int64_t query = first; query < last; query += kBlock) {
      const int64_t num_queries = std::min(kBlock, last - query);
      read_queries(head, query, last, queries);
      for (int64_t j = 0; j < blocks; ++j)
        multiply(queries, keys + 2 * j * depth * kTile, depth, kTile, depth * kTile, scores + j * kBlock, padded * 4);
      if (query == first) read_values(head, key, count, values);  // while the tiles compute
      alignas(kLine) float factors[kBlock], inverses[kBlock];  // of earlier sums; of what the weights add up to
      for (int64_t i = 0; i < num_queries; i += kLanes) {
        const Sight sight{query + i - reach - key, query + i + reach + 1 - key, count, head.window > 0};
        Seen& group = seen[(query + i - first) / kLanes];
        weigh(scores + i * padded, head.scale * kLog2E, std::min<int64_t>(kLanes, num_queries - i), sight, padded,
              weights + i / kTileRows * blocks * kTile, group);
        store(factors + i, group.keep);
        store(inverses + i, 1 / group.total);
      }
      for (int64_t column = 0; column < width; column += kBlock) {
        multiply(weights, values + column / kTileRows * kTile, blocks, width / kTileRows * kTile, kTile, products,
                 kBlock * 4);
        for (int64_t i = 0; i < num_queries; ++i) {
          float* sum = sums + (query - first + i) * width + column;
          Vec a = load(products + i * kBlock), b = load(products + i * kBlock + kLanes);
          if (!is_first) a += load(sum) * factors[i], b += load(sum + kLanes) * factors[i];
          if (is_last) {
            const __m512bh rounded = _mm512_cvtne2ps_pbh(b * inverses[i], a * inverses[i]);
            std::memcpy(head.out + (query + i) * head.out_token + column, &rounded, sizeof rounded);
          } else {
            store(sum, a);
            store(sum + kLanes, b);
          }
        }
      }
    }
  }
}

#endif

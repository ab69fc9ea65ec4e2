// Attention within each sequence of a packed row: in bfloat16 by tiles, where the processor has them (tile_attention.h),
// else in float32 as follows.
//
// A vector register holds one number for each of 16 queries, so a sequence needs no padding for its keys, and the
// softmax needs no sums across a register. A task is one head of up to 128 queries of one sequence; it reads the
// keys in blocks and corrects its running sums when a block has a larger score (Milakov & Gimelshein 2018; Dao et
// al. 2022), so its memory does not grow with the length.

#include "packed_attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tile_attention.h"
#include "vectors.h"

namespace {

constexpr int kKeyBlock = 256;    // keys whose scores are in the cache at the same time
constexpr int kTaskVectors = 8;   // vectors of queries in a task

struct bf16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &wide, sizeof y);
  return y;
}

inline void put(float* to, float x) { *to = x; }
inline void put(bf16* to, float x) {  // rounds to the nearest, ties to even; the quiet bit keeps a NaN a NaN
  uint32_t wide;
  std::memcpy(&wide, &x, sizeof wide);
  const uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  to->bits = static_cast<uint16_t>((wide & 0x7fffffff) > 0x7f800000 ? (wide >> 16) | 0x40 : rounded);
}

// A row of D numbers for each token, `token` numbers apart.
template <typename T>
struct Rows {
  T* data;
  int64_t token;
};

struct Scratch {
  std::vector<float> queries, keys, values, scores, sums;
  void fit(int64_t width) {
    queries.resize(kTaskVectors * width * kLanes);
    keys.resize((kKeyBlock + kLanes) * width);
    values.resize(kKeyBlock * width);
    scores.resize(2 * (kKeyBlock + kLanes) * kLanes);
    sums.resize(kTaskVectors * width * kLanes);
  }
};

template <typename T>
void read_block(Rows<const T> rows, int64_t first, int64_t count, int64_t width, float* to) {
  for (int64_t j = 0; j < count; ++j) {
    const T* from = rows.data + (first + j) * rows.token;
    for (int64_t d = 0; d < width; ++d) to[j * width + d] = to_float(from[d]);
  }
}

// Writes queries first .. first + 15 as (D, 16), scaled. A query after the last one is the last one again.
template <typename T>
void read_queries(Rows<const T> rows, int64_t first, int64_t length, int64_t width, float scale, float* to) {
  for (int64_t d = 0; d < width; d += kLanes) {
    Vec block[kLanes];
    const int64_t count = std::min<int64_t>(kLanes, width - d);
    for (int i = 0; i < kLanes; ++i) {
      const T* from = rows.data + std::min(first + i, length - 1) * rows.token + d;
      float line[kLanes] = {};
      if (count == kLanes)
        for (int x = 0; x < kLanes; ++x) line[x] = to_float(from[x]) * scale;
      else
        for (int x = 0; x < count; ++x) line[x] = to_float(from[x]) * scale;
      block[i] = load(line);
    }
    transpose(block);
    for (int x = 0; x < count; ++x) store(to + (d + x) * kLanes, block[x]);
  }
}

template <typename T>
void write_rows(const float* sums, const Vec& total, int64_t first, int64_t length, int64_t width, Rows<T> out) {
  const Vec inverse = 1.0f / total;
  for (int64_t d = 0; d < width; d += kLanes) {
    Vec block[kLanes] = {};
    const int64_t count = std::min<int64_t>(kLanes, width - d);
    for (int x = 0; x < count; ++x) block[x] = load(sums + (d + x) * kLanes) * inverse;
    transpose(block);
    for (int i = 0; i < kLanes && first + i < length; ++i) {
      T* to = out.data + (first + i) * out.token + d;
      float line[kLanes];
      store(line, block[i]);
      if (count == kLanes)
        for (int x = 0; x < kLanes; ++x) put(to + x, line[x]);
      else
        for (int x = 0; x < count; ++x) put(to + x, line[x]);
    }
  }
}

// Scores of `Keys` keys with `Vectors` vectors of queries.
template <int Vectors, int Keys>
inline void score(const float* queries, const float* keys, int64_t width, float* scores) {
  Vec sum[Keys][Vectors] = {};
  for (int64_t d = 0; d < width; ++d) {
    Vec q[Vectors];
    for (int v = 0; v < Vectors; ++v) q[v] = load(queries + (v * width + d) * kLanes);
    for (int j = 0; j < Keys; ++j)
      for (int v = 0; v < Vectors; ++v) sum[j][v] += q[v] * keys[j * width + d];
  }
  for (int j = 0; j < Keys; ++j)
    for (int v = 0; v < Vectors; ++v) store(scores + (j * Vectors + v) * kLanes, sum[j][v]);
}

// Adds the weighted values of `count` keys to `Columns` columns of the sums, which are multiplied by `keep` first.
template <int Vectors, int Columns>
inline void weigh(const float* weights, const float* values, int64_t count, int64_t width, const Vec* keep,
                  float* sums) {
  Vec sum[Columns][Vectors];
  for (int d = 0; d < Columns; ++d)
    for (int v = 0; v < Vectors; ++v) sum[d][v] = load(sums + (v * width + d) * kLanes) * keep[v];
  for (int64_t j = 0; j < count; ++j) {
    Vec w[Vectors];
    for (int v = 0; v < Vectors; ++v) w[v] = load(weights + (j * Vectors + v) * kLanes);
    for (int d = 0; d < Columns; ++d)
      for (int v = 0; v < Vectors; ++v) sum[d][v] += w[v] * values[j * width + d];
  }
  for (int d = 0; d < Columns; ++d)
    for (int v = 0; v < Vectors; ++v) store(sums + (v * width + d) * kLanes, sum[d][v]);
}

// Lets `Vectors` vectors of queries, the first of them at `query`, see `count` keys, the first of them at `key`.
template <int Vectors>
void see_block(const float* queries, const float* keys, const float* values, int64_t query, int64_t key,
               int64_t count, int64_t width, int64_t window, float* scores, Vec* highest, Vec* total,
               float* sums) {
  constexpr int kKeys = 16 / Vectors;  // so that 16 registers hold sums
  int64_t j = 0;
  for (; j < count; j += kKeys)  // the last keys may be of no use; their scores are not read
    score<Vectors, kKeys>(queries, keys + j * width, width, scores + j * Vectors * kLanes);
  if (window > 0) {
    for (j = 0; j < count; ++j)
      for (int i = 0; i < Vectors * kLanes; ++i)
        if (std::abs(query + i - key - j) >= window) scores[j * Vectors * kLanes + i] = -INFINITY;
  }
  Vec keep[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    Vec top = highest[v];
    for (j = 0; j < count; ++j) {
      const Vec x = load(scores + (j * Vectors + v) * kLanes);
      top = x > top ? x : top;
    }
    // A query that has seen no key yet has -infinity, and infinity minus infinity is no number.
    const Vec base = top == -INFINITY ? Vec{} : top;
    keep[v] = exp_of_negative(highest[v] - base);
    highest[v] = top;
    Vec sum = total[v] * keep[v];
    for (j = 0; j < count; ++j) {
      float* at = scores + (j * Vectors + v) * kLanes;
      const Vec weight = exp_of_negative(load(at) - base);
      store(at, weight);
      sum += weight;
    }
    total[v] = sum;
  }
  constexpr int kColumns = 16 / Vectors;
  int64_t d = 0;
  for (; d + kColumns <= width; d += kColumns)
    weigh<Vectors, kColumns>(scores, values + d, count, width, keep, sums + d * kLanes);
  for (; d < width; ++d) weigh<Vectors, 1>(scores, values + d, count, width, keep, sums + d * kLanes);
}

// Computes the output of queries first .. last - 1 of a sequence of `length` tokens.
template <typename T>
void attend(Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<T> out, int64_t first, int64_t last,
            int64_t length, int64_t width, float scale, int64_t window, Scratch& scratch) {
  scratch.fit(width);
  const int vectors = static_cast<int>((last - first + kLanes - 1) / kLanes);
  float *queries = scratch.queries.data(), *sums = scratch.sums.data();
  Vec highest[kTaskVectors], total[kTaskVectors];
  for (int i = 0; i < vectors; ++i) {
    read_queries(q, first + i * kLanes, length, width, scale, queries + i * width * kLanes);
    highest[i] = splat(-INFINITY);
    total[i] = Vec{};
  }
  std::fill(sums, sums + vectors * width * kLanes, 0.0f);
  const int64_t reach = window > 0 ? window - 1 : length;
  const int64_t end = std::min(length, last + reach);
  for (int64_t key = std::max<int64_t>(0, first - reach); key < end; key += kKeyBlock) {
    const int64_t count = std::min<int64_t>(kKeyBlock, end - key);
    read_block(k, key, count, width, scratch.keys.data());
    read_block(v, key, count, width, scratch.values.data());
    for (int i = 0; i < vectors; i += 2) {
      const auto see = i + 1 < vectors ? see_block<2> : see_block<1>;
      see(queries + i * width * kLanes, scratch.keys.data(), scratch.values.data(), first + i * kLanes, key, count,
          width, window, scratch.scores.data(), highest + i, total + i, sums + i * width * kLanes);
    }
  }
  for (int i = 0; i < vectors; ++i)
    write_rows(sums + i * width * kLanes, total[i], first + i * kLanes, last, width, out);
}

struct Task {
  int64_t start, length, first, last;  // a sequence, and the queries of it that the task computes
};

// Calls work(task, head) for each head of each task.
template <typename Work>
void for_heads(const int64_t* ends, int64_t count, int64_t heads, int threads, const Work& work) {
  std::vector<Task> tasks;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t start = i == 0 ? 0 : ends[i - 1], length = ends[i] - start;
    for (int64_t first = 0; first < length; first += kTaskVectors * kLanes)
      tasks.push_back({start, length, first, std::min<int64_t>(length, first + kTaskVectors * kLanes)});
  }
  const int64_t total = static_cast<int64_t>(tasks.size()) * heads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Tiles tiles;
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < total; ++i) work(tasks[i / heads], i % heads);
  }
}

template <typename T>
void packed(const T* q, const T* k, const T* v, T* out, const int64_t* strides, const int64_t* ends, int64_t count,
            int64_t heads, int64_t width, float scale, int64_t window, int threads) {
  for_heads(ends, count, heads, threads, [&](const Task& task, int64_t head) {
    thread_local Scratch scratch;
    const Rows<const T> queries{q + task.start * strides[0] + head * strides[1], strides[0]};
    const Rows<const T> keys{k + task.start * strides[2] + head * strides[3], strides[2]};
    const Rows<const T> values{v + task.start * strides[4] + head * strides[5], strides[4]};
    const Rows<T> rows{out + task.start * heads * width + head * width, heads * width};
    attend(queries, keys, values, rows, task.first, task.last, task.length, width, scale, window, scratch);
  });
}

void packed_in_tiles(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out, const int64_t* strides,
                     const int64_t* ends, int64_t count, int64_t heads, int64_t width, float scale, int64_t window,
                     int threads) {
  for_heads(ends, count, heads, threads, [&](const Task& task, int64_t head) {
    thread_local TileScratch scratch;
    const Head one{{q + task.start * strides[0] + head * strides[1], strides[0]},
                   {k + task.start * strides[2] + head * strides[3], strides[2]},
                   {v + task.start * strides[4] + head * strides[5], strides[4]},
                   out + (task.start * heads + head) * width,
                   heads * width, task.length, width, scale, window};
    attend_in_tiles(one, task.first, task.last, scratch);
  });
}

}  // namespace

void packed_attention(const void* q, const void* k, const void* v, void* out, const int64_t* strides,
                      const int64_t* ends, int64_t count, int64_t heads, int64_t width, float scale, int64_t window,
                      bool is_bfloat16, int threads) {
  const auto as = [&](auto compute, auto type) {
    using T = decltype(type);
    compute(static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), static_cast<T*>(out), strides,
            ends, count, heads, width, scale, window, threads);
  };
  if (!is_bfloat16)
    as(packed<float>, float());
  else if (fits_tiles(width))
    as(packed_in_tiles, uint16_t());
  else
    as(packed<bf16>, bf16());
}

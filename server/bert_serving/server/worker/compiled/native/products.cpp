// Products in bfloat16 or in 8-bit integers; in float32 instead of bfloat16 on processors without it.
//
// A task computes up to 256 rows, from their input to their result, so that what lies between stays in a core's
// cache. It first writes its rows as the instructions read them: rounded to bfloat16, or as 8-bit integers with a scale
// and a zero point of its own for each row. So a row's result depends on that row only. With fewer rows than threads,
// all threads compute the same rows, and each thread some of the columns.
//
// Both AMX's tiles and AVX-512's dot products read weights in groups of 4 bytes of a column (two bfloat16 numbers or
// four integers; a group of float32 has one number). A packed weight therefore has, for each 16 columns and each 4 bytes
// of depth, a line of 16 groups. The depth is filled up with zeros to whole lines, and the columns to 32.

#include "products.h"

#ifdef BERT_SERVING_PRODUCTS

#include "tiles.h"

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kMaxRows = 256;  // rows of a task
constexpr int64_t kBlock = 32;     // rows and columns whose sums are in registers or tiles at the same time
constexpr int64_t kLanes = 16;     // numbers in a vector, and columns in a line

typedef __m512 Vec;

inline Vec splat(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
inline Vec load(const uint16_t* from) {  // bfloat16
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Vec limit(Vec x, float low, float high) { return _mm512_min_ps(_mm512_max_ps(x, splat(low)), splat(high)); }

// x * Phi(x) with an error below 6e-5; rounding 1 to bfloat16 costs 2e-3. Phi(x) - 1/2 is x times a polynomial of
// x * x up to 4.4, fitted so that Phi is 1 there.
inline Vec gelu(Vec x) {
  const Vec near = limit(x, -4.4f, 4.4f), square = near * near;
  Vec p = splat(3.572632338508771e-11f);
  p = p * square + splat(-3.756631863610595e-09f);
  p = p * square + splat(1.741708807149922e-07f);
  p = p * square + splat(-4.726403712019594e-06f);
  p = p * square + splat(8.430877884583707e-05f);
  p = p * square + splat(-1.055085996420694e-03f);
  p = p * square + splat(9.643331683270846e-03f);
  p = p * square + splat(-6.607690111864908e-02f);
  p = p * square + splat(3.987618554359656e-01f);
  return x * limit(near * p + splat(0.5f), 0.0f, 1.0f);
}

// Rows as the instructions read them, the count filled up to whole blocks. 16 rows lie together: the first line of each
// of them, then the second line of each, and so on.
struct Rows {
  Lines lines;
  std::vector<float> scale, zero;  // of each row, if they are 8-bit integers q: x is about scale * (q - zero)
  int64_t count, depth;            // depth: in bytes, whole lines
  void fit(int64_t num_rows, int64_t num_bytes) {
    count = num_rows;
    depth = (num_bytes + kLine - 1) / kLine * kLine;
    lines.fit((count + kBlock - 1) / kBlock * kBlock * depth);
    if (static_cast<int64_t>(scale.size()) < count) scale.resize(count), zero.resize(count);
    if (depth > num_bytes)
      for (int64_t i = 0; i < count; ++i) std::memset(at(i, depth - kLine), 0, kLine);
  }
  // The place of a byte of a row.
  uint8_t* at(int64_t row, int64_t byte) const {
    return lines.begin() + row / kLanes * kLanes * depth + byte / kLine * kLanes * kLine + row % kLanes * kLine +
           byte % kLine;
  }
};

struct Scratch {
  Rows rows;
  std::vector<Number> hidden;
  alignas(64) uint8_t sums[2][kBlock * kBlock * 4];
};

// -- the kinds of numbers ----------------------------------------------------------------------------------------

// dot() adds to each sum the product of a group of 4 bytes with another. It is written in assembly because GCC 12 copies
// all sums to other registers and back when it compiles the intrinsics.

struct Floats {
  typedef float Sum;
  typedef __m512 Sums;
  static Vec result(const Sum* sums, const Linear& linear, const Rows&, int64_t, int64_t column) {
    return _mm512_load_ps(sums) + load(linear.bias + column);
  }
};

#ifdef BERT_SERVING_BFLOAT16

struct Bfloat16 : Floats {
  static constexpr int64_t kBytes = 2;

  static void read(const uint16_t* x, const Linear& linear, Rows& rows, int64_t row) {
    const uint8_t* from = reinterpret_cast<const uint8_t*>(x);
    const int64_t bytes = linear.depth * kBytes, whole = bytes / kLine * kLine;
    for (int64_t k = 0; k < whole; k += kLine) std::memcpy(rows.at(row, k), from + k, kLine);
    if (whole < bytes) std::memcpy(rows.at(row, whole), from + whole, kLine / 2);
  }
  static void read(const float* x, const Linear& linear, Rows& rows, int64_t row) {
    for (int64_t k = 0; k < linear.depth; k += kLanes) {
      const __m256bh rounded = _mm512_cvtneps_pbh(load(x + k));
      std::memcpy(rows.at(row, k * kBytes), &rounded, sizeof rounded);
    }
  }
  static __m512 dot(__m512 sum, __m512i a, __m512i b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
#ifdef __AMX_BF16__
  static void dot_tiles() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
#endif
};

typedef Bfloat16 Wide;

#else

struct Float32 : Floats {
  static constexpr int64_t kBytes = 4;

  template <typename T>
  static void read(const T* x, const Linear& linear, Rows& rows, int64_t row) {
    for (int64_t k = 0; k < linear.depth; k += kLanes)
      _mm512_storeu_ps(reinterpret_cast<float*>(rows.at(row, k * kBytes)), load(x + k));
  }
  static __m512 dot(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
};

typedef Float32 Wide;

#endif

struct Int8 {
  typedef int32_t Sum;
  typedef __m512i Sums;
  static constexpr int64_t kBytes = 1;

  // Unsigned integers, 0 for the smallest number of the row and 255 for the largest one.
  template <typename T>
  static void read(const T* x, const Linear& linear, Rows& rows, int64_t row) {
    Vec low = splat(0), high = splat(0), odd = splat(0);
    for (int64_t k = 0; k < linear.depth; k += kLanes) {
      const Vec v = load(x + k) * load(linear.smooth + k);
      low = _mm512_min_ps(low, v);
      high = _mm512_max_ps(high, v);
      odd += v * splat(0);  // min and max forget NaN; this does not
    }
    const float smallest = _mm512_reduce_min_ps(low);
    const float range = _mm512_reduce_max_ps(high) - smallest + _mm512_reduce_add_ps(odd);
    const float scale = range == 0 ? 1 : range / 255, per_scale = 1 / scale;
    const float zero = __builtin_rintf(-smallest * per_scale);
    for (int64_t k = 0; k < linear.depth; k += kLanes) {
      const Vec v = load(x + k) * load(linear.smooth + k) * splat(per_scale) + splat(zero);
      const __m128i q = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(limit(v, 0, 255)));
      std::memcpy(rows.at(row, k), &q, sizeof q);
    }
    rows.scale[row] = scale;
    rows.zero[row] = zero;
  }
  static __m512i dot(__m512i sum, __m512i a, __m512i b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
#ifdef __AMX_INT8__
  static void dot_tiles() {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
#endif
  static Vec result(const Sum* sums, const Linear& linear, const Rows& rows, int64_t row, int64_t column) {
    const Vec sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums)) * load(linear.scale + column);
    const Vec shifted = sum - splat(rows.zero[row]) * load(linear.correction + column);
    return shifted * splat(rows.scale[row]) + load(linear.bias + column);
  }
};

// -- where results go --------------------------------------------------------------------------------------------

// Each takes 16 results of a row, or 32 of them.

inline void store(float* to, Vec a) { _mm512_storeu_ps(to, a); }
inline void store(float* to, Vec a, Vec b) {
  store(to, a);
  store(to + kLanes, b);
}
#ifdef BERT_SERVING_BFLOAT16
inline void store(uint16_t* to, Vec a) {
  const __m256bh rounded = _mm512_cvtneps_pbh(a);
  std::memcpy(to, &rounded, sizeof rounded);
}
inline void store(uint16_t* to, Vec a, Vec b) {
  const __m512bh rounded = _mm512_cvtne2ps_pbh(b, a);
  std::memcpy(to, &rounded, sizeof rounded);
}
#endif

struct ToNumbers {
  Number* y;
  int64_t columns;
  bool with_gelu;
  void put(int64_t row, int64_t column, Vec a) const { store(y + row * columns + column, with_gelu ? gelu(a) : a); }
  void put(int64_t row, int64_t column, Vec a, Vec b) const {
    if (with_gelu) a = gelu(a), b = gelu(b);
    store(y + row * columns + column, a, b);
  }
};

struct AddedToResidual {
  float* y;
  const float* residual;
  int64_t columns;
  void put(int64_t row, int64_t column, Vec a) const {
    const int64_t at = row * columns + column;
    store(y + at, a + load(residual + at));
  }
  void put(int64_t row, int64_t column, Vec a, Vec b) const {
    put(row, column, a);
    put(row, column + kLanes, b);
  }
};

// -- 32 rows by 32 columns ---------------------------------------------------------------------------------------

// Sums that are not results yet. They become results while the next sums are computed: the processor runs both kinds
// of instructions side by side if they are close to each other in the program.
template <typename Kind, typename Sink>
struct Pending {
  const Linear& linear;
  const Rows& rows;
  const Sink& sink;
  const typename Kind::Sum* sums = nullptr;
  int64_t row = 0, column = 0, count = 0, next = 0;

  void finish(int64_t some) {
    for (const int64_t end = std::min(count, next + some); next < end; ++next) {
      const auto from = sums + next * kBlock;
      const Vec a = Kind::result(from, linear, rows, row + next, column);
      if (column + kLanes == linear.columns)
        sink.put(row + next, column, a);
      else
        sink.put(row + next, column, a, Kind::result(from + kLanes, linear, rows, row + next, column + kLanes));
    }
  }
};

#ifdef BERT_SERVING_TILES

// Multiplies 32 rows, of which `count` are of use, by 32 columns. weights: the lines of the first 16 columns, then those
// of the next 16.
template <typename Kind, typename Sink>
inline void multiply(const uint8_t* rows, int64_t, int64_t depth, const uint8_t* weights, void* sums,
                     Pending<Kind, Sink>& pending) {
  const uint8_t *below = rows + depth * kLanes, *next = weights + depth * kLanes;
  const int64_t some = (kBlock * kLine + depth - 1) / depth;
  order_memory();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kLine) {
    _tile_loadd(4, rows + k * kLanes, kLine);
    _tile_loadd(6, weights + k * kLanes, kLine);
    _tile_loadd(5, below + k * kLanes, kLine);
    _tile_loadd(7, next + k * kLanes, kLine);
    Kind::dot_tiles();
    pending.finish(some);
  }
  uint8_t* to = static_cast<uint8_t*>(sums);
  _tile_stored(0, to, kBlock * 4);
  _tile_stored(1, to + kLine, kBlock * 4);
  _tile_stored(2, to + kLanes * kBlock * 4, kBlock * 4);
  _tile_stored(3, to + kLanes * kBlock * 4 + kLine, kBlock * 4);
  order_memory();
}

#else

template <typename Kind, typename Sink>
inline void multiply(const uint8_t* rows, int64_t count, int64_t depth, const uint8_t* weights, void* sums,
                     Pending<Kind, Sink>& pending) {
  constexpr int kHeld = 8;   // rows whose sums are in registers
  constexpr int kGroup = 4;  // bytes
  for (int64_t first = 0; first < count; first += kHeld) {
    const uint8_t *line = rows + first / kLanes * kLanes * depth + first % kLanes * kLine, *left = weights,
                  *right = weights + depth * kLanes, *end = right;
    typename Kind::Sums held[kHeld][2] = {};
    while (left < end) {
      for (int at = 0; at < kLine; at += kGroup, left += kLine, right += kLine) {
        const __m512i a = _mm512_loadu_si512(left), b = _mm512_loadu_si512(right);
#pragma GCC unroll 8
        for (int i = 0; i < kHeld; ++i) {
          int32_t group;
          std::memcpy(&group, line + i * kLine + at, sizeof group);
          const __m512i row = _mm512_set1_epi32(group);
          held[i][0] = Kind::dot(held[i][0], row, a);
          held[i][1] = Kind::dot(held[i][1], row, b);
        }
      }
      line += kLanes * kLine;
    }
    std::memcpy(static_cast<uint8_t*>(sums) + first * kBlock * 4, held, sizeof held);
    pending.finish(kHeld);
  }
}

#endif

// -- the steps of a task -----------------------------------------------------------------------------------------

// A part of the columns, so that several threads may share the same rows.
struct Part {
  int64_t index, count;
  int64_t begin(int64_t total) const { return total * index / count; }
  int64_t end(int64_t total) const { return total * (index + 1) / count; }
};

template <typename Kind>
void read(const Linear& linear, const Input& x, int64_t first, Rows& rows) {
  rows.fit(x.count, linear.depth * Kind::kBytes);
  for (int64_t i = 0; i < x.count; ++i) {
    const int64_t at = (first + i) * linear.depth;
    if (x.is_bfloat16)
      Kind::read(static_cast<const uint16_t*>(x.data) + at, linear, rows, i);
    else
      Kind::read(static_cast<const float*>(x.data) + at, linear, rows, i);
  }
}

template <typename Kind, typename Sink>
void multiply_part(const Linear& linear, Scratch& scratch, Part part, const Sink& sink) {
  const Rows& rows = scratch.rows;
  Pending<Kind, Sink> pending{linear, rows, sink};
  const int64_t blocks = (linear.columns + kBlock - 1) / kBlock;
  int turn = 0;
  for (int64_t column = part.begin(blocks) * kBlock; column < part.end(blocks) * kBlock; column += kBlock) {
    const uint8_t* weights = static_cast<const uint8_t*>(linear.weight) + column * rows.depth;
    for (int64_t row = 0; row < rows.count; row += kBlock) {
      auto sums = reinterpret_cast<typename Kind::Sum*>(scratch.sums[turn ^= 1]);
      const int64_t count = std::min(kBlock, rows.count - row);
      multiply<Kind>(rows.at(row, 0), count, rows.depth, weights, sums, pending);
      pending.finish(kBlock);
      pending.sums = sums;
      pending.row = row;
      pending.column = column;
      pending.count = count;
      pending.next = 0;
    }
  }
  pending.finish(kBlock);
}

template <typename Sink>
void read_and_multiply(const Linear& linear, const Input& x, int64_t first, Scratch& scratch, Part part,
                       const Sink& sink) {
  if (linear.is_int8()) {
    read<Int8>(linear, x, first, scratch.rows);
    multiply_part<Int8>(linear, scratch, part, sink);
  } else {
    read<Wide>(linear, x, first, scratch.rows);
    multiply_part<Wide>(linear, scratch, part, sink);
  }
}

void normalize(const Norm& norm, float* row, int64_t width) {
  Vec sum = splat(0);
  for (int64_t k = 0; k < width; k += kLanes) sum += load(row + k);
  const Vec mean = splat(_mm512_reduce_add_ps(sum) / width);
  Vec squares = splat(0);
  for (int64_t k = 0; k < width; k += kLanes) {
    const Vec v = load(row + k) - mean;
    squares += v * v;
  }
  const Vec per_deviation = splat(1 / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / width + norm.epsilon));
  for (int64_t k = 0; k < width; k += kLanes) {
    const Vec v = (load(row + k) - mean) * per_deviation;
    store(row + k, v * load(norm.weight + k) + load(norm.bias + k));
  }
}

// How rows are divided among threads.
struct Plan {
  int64_t rows, tasks;  // of a task; of all
  Plan(int64_t count, int64_t threads) {
    const int64_t rounds = (count + kMaxRows * threads - 1) / (kMaxRows * threads);
    const int64_t even = (count + rounds * threads - 1) / (rounds * threads);
    rows = (even + kBlock - 1) / kBlock * kBlock;
    tasks = (count + rows - 1) / rows;
  }
};

// Calls work(first row, number of rows, part, scratch, barrier) for all rows. If there are fewer tasks than threads, each
// thread computes a part of the same rows, and all meet at the barriers.
template <typename Work>
void for_rows(int64_t count, int threads, const Work& work) {
  const Plan plan(count, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Tiles tiles;
    thread_local Scratch scratch;
    const int64_t present = omp_get_num_threads();
    if (plan.tasks >= present) {
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t task = 0; task < plan.tasks; ++task) {
        const int64_t first = task * plan.rows;
        work(first, std::min(plan.rows, count - first), Part{0, 1}, scratch, [] {});
      }
    } else {
      work(0, count, Part{omp_get_thread_num(), present}, scratch, [] {
#pragma omp barrier
      });
    }
  }
}

}  // namespace

void product(const Linear& linear, const Input& x, bool gelu, Number* y, int threads) {
  for_rows(x.count, threads, [&](int64_t first, int64_t count, Part part, Scratch& scratch, auto) {
    const ToNumbers sink{y + first * linear.columns, linear.columns, gelu};
    read_and_multiply(linear, {x.data, count, x.is_bfloat16}, first, scratch, part, sink);
  });
}

void product_and_norm(const Linear& linear, const Input& x, const float* residual, const Norm& norm, float* y,
                      int threads) {
  for_rows(x.count, threads, [&](int64_t first, int64_t count, Part part, Scratch& scratch, auto barrier) {
    const int64_t at = first * linear.columns;
    const AddedToResidual sink{y + at, residual + at, linear.columns};
    read_and_multiply(linear, {x.data, count, x.is_bfloat16}, first, scratch, part, sink);
    barrier();
    for (int64_t i = part.begin(count); i < part.end(count); ++i)
      normalize(norm, y + at + i * linear.columns, linear.columns);
  });
}

void feed_forward(const Linear& up, const Linear& down, const Input& x, const Norm& norm, float* y, int threads) {
  std::vector<Number> shared;  // what is between the products, if the threads compute the same rows
  if (Plan(x.count, threads).tasks < threads) shared.resize(x.count * up.columns);
  for_rows(x.count, threads, [&](int64_t first, int64_t count, Part part, Scratch& scratch, auto barrier) {
    Number* hidden = shared.data();
    if (part.count == 1) {
      if (static_cast<int64_t>(scratch.hidden.size()) < count * up.columns) scratch.hidden.resize(count * up.columns);
      hidden = scratch.hidden.data();
    }
    read_and_multiply(up, {x.data, count, x.is_bfloat16}, first, scratch, part,
                      ToNumbers{hidden, up.columns, true});
    barrier();
    const int64_t at = first * down.columns;
    const AddedToResidual sink{y + at, static_cast<const float*>(x.data) + at, down.columns};
    read_and_multiply(down, {hidden, count, sizeof(Number) == 2}, 0, scratch, part, sink);
    barrier();
    for (int64_t i = part.begin(count); i < part.end(count); ++i)
      normalize(norm, y + at + i * down.columns, down.columns);
  });
}

#endif


// Vectors of 16 numbers in float32, for every processor that the compiler knows.
#pragma once

#include <cstdint>
#include <cstring>

constexpr int kLanes = 16;  // numbers in a vector

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef float LooseVec __attribute__((vector_size(64), aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
inline void store(float* to, Vec v) { *reinterpret_cast<LooseVec*>(to) = v; }
inline Vec splat(float x) { return Vec{} + x; }

// exp(x) for x <= 0, with a relative error below 2e-7; 1.8e-35 for less than -80; NaN for NaN. The polynomial is that of
// Cephes' expf.
inline Vec exp_of_negative(Vec x) {
  x = x < -80.0f ? splat(-80.0f) : x;
  const Vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // the nearest whole number
  const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  Vec power;
  std::memcpy(&power, &exponent, sizeof power);
  return y * power;
}

// The halves of two vectors that go together when rows and columns change places, in blocks of `Step` numbers.
template <int Step>
inline void exchange(Vec a, Vec b, Vec& first, Vec& second) {
  IntVec low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i & Step ? kLanes + i - Step : i;
    high[i] = i & Step ? kLanes + i : i + Step;
  }
  first = __builtin_shuffle(a, b, low);
  second = __builtin_shuffle(a, b, high);
}

template <int Step>
inline void transpose_step(Vec* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & Step)) exchange<Step>(rows[i], rows[i + Step], rows[i], rows[i + Step]);
}

// Transposes 16 x 16 numbers: rows[i][j] becomes rows[j][i].
inline void transpose(Vec* rows) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  transpose_step<4>(rows);
  transpose_step<8>(rows);
}

template <int Step, typename Join>
inline void fold_step(Vec* rows, Join join) {
#pragma GCC unroll 8
  for (int i = 0; i < Step; ++i) {
    Vec first, second;
    exchange<Step>(rows[i], rows[i + Step], first, second);
    rows[i] = join(first, second);
  }
}

// Joins the numbers of each of 16 rows, whose order join(a, b) must not mind; lane i of the result is for rows[i].
// Changes the rows.
template <typename Join>
inline Vec fold(Vec* rows, Join join) {
  fold_step<8>(rows, join);
  fold_step<4>(rows, join);
  fold_step<2>(rows, join);
  fold_step<1>(rows, join);
  return rows[0];
}

// AMX's tiles, and AVX-512's rounding to bfloat16, in plain C++: with `-include`, the operators for a processor with both
// can be tested on one with AVX-512 alone.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define __AMX_TILE__ 1
#define __AMX_INT8__ 1
#define __AMX_BF16__ 1
#define __AVX512BF16__ 1

asm(".macro ldtilecfg address:vararg\n.endm");  // all tiles have 16 lines of 64 bytes

namespace emulated {

inline thread_local uint8_t tiles[8][16][64];

inline void load(int tile, const void* base, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(tiles[tile][i], static_cast<const uint8_t*>(base) + i * stride, 64);
}

inline void store(int tile, void* base, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<uint8_t*>(base) + i * stride, tiles[tile][i], 64);
}

inline float widened(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// Adds to the 16 x 16 sums in a tile the products of groups of 4 bytes: a line of the one tile with a column of groups in
// the other.
template <typename Sum, typename Left, typename Right, typename Widen>
void multiply(int sums, int left, int right, Widen widen) {
  constexpr int kGroup = 4 / sizeof(Left);
  Sum sum[16][16];
  Left a[16][16][kGroup];
  Right b[16][16][kGroup];
  std::memcpy(sum, tiles[sums], sizeof sum);
  std::memcpy(a, tiles[left], sizeof a);
  std::memcpy(b, tiles[right], sizeof b);
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 16; ++j)
        for (int g = 0; g < kGroup; ++g) sum[i][j] += Sum(widen(a[i][k][g])) * Sum(widen(b[k][j][g]));
  std::memcpy(tiles[sums], sum, sizeof sum);
}

inline uint16_t rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <typename To, typename... From>
To all_rounded(From... from) {
  uint16_t numbers[sizeof(To) / 2];
  uint16_t* next = numbers;
  const auto add = [&](__m512 x) {
    float values[16];
    std::memcpy(values, &x, sizeof values);
    for (const float value : values) *next++ = rounded(value);
  };
  (add(from), ...);
  To result;
  std::memcpy(&result, numbers, sizeof result);
  return result;
}

}  // namespace emulated

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_release() static_cast<void>(0)
#define _tile_zero(tile) std::memset(emulated::tiles[tile], 0, sizeof emulated::tiles[tile])
#define _tile_loadd(tile, base, stride) emulated::load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated::store(tile, base, stride)
#define _tile_dpbf16ps(to, a, b) emulated::multiply<float, uint16_t, uint16_t>(to, a, b, emulated::widened)
#define _tile_dpbusd(to, a, b) emulated::multiply<int32_t, uint8_t, int8_t>(to, a, b, [](auto x) { return x; })
#define _mm512_cvtneps_pbh(x) emulated::all_rounded<__m256bh>(x)
#define _mm512_cvtne2ps_pbh(high, low) emulated::all_rounded<__m512bh>(low, high)

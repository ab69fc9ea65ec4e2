// Attention within a sequence in bfloat16, by AMX's tiles.
#pragma once

#include <cstdint>

#include "tiles.h"

// One head of a sequence of `length` tokens. Each token has a row of `width` bfloat16 numbers, at `token` numbers from
// the row of the token before. scale: of the scores. window: a token sees others that are less than this far away; 0: all.
struct Head {
  struct Read {
    const uint16_t* data;
    int64_t token;
  };
  Read queries, keys, values;
  uint16_t* out;
  int64_t out_token, length, width;
  float scale;
  int64_t window;
};

#ifdef BERT_SERVING_TILES

// Whether tiles can compute heads of this width.
inline bool fits_tiles(int64_t width) { return width % 32 == 0; }

// What a thread writes on the way.
struct TileScratch {
  Lines queries, keys, values, scores, weights, products, sums;
};

// Computes the output of queries first .. last - 1, at most 128, in a thread that has configured its tiles.
void attend_in_tiles(const Head& head, int64_t first, int64_t last, TileScratch& scratch);

#else

inline bool fits_tiles(int64_t) { return false; }
struct TileScratch {};
inline void attend_in_tiles(const Head&, int64_t, int64_t, TileScratch&) {}

#endif

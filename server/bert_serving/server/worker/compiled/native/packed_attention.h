// Attention within each sequence of a packed row.
#pragma once

#include <cstdint>

// q, k, v: T tokens of `heads` rows of `width` numbers; strides: of a token and of a head, for q, k and v, counted
// in numbers; the width is contiguous. out: (T, heads, width), contiguous. ends: where each of `count` sequences
// ends in the row of tokens. window: a token sees others that are less than this far away; 0: all.
void packed_attention(const void* q, const void* k, const void* v, void* out, const int64_t* strides,
                      const int64_t* ends, int64_t count, int64_t heads, int64_t width, float scale, int64_t window,
                      bool is_bfloat16, int threads);

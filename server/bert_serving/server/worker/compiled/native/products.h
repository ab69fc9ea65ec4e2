// Products of rows with packed weights, alone or with what follows them in a transformer's layer.
#pragma once

#include <cstdint>

#ifdef __AVX512VNNI__
#define BERT_SERVING_PRODUCTS
#endif

// What products compute in if they do not compute in 8-bit integers: bfloat16 if the processor has its dot products,
// else float32.
#if defined(__AVX512BF16__) && !defined(BERT_SERVING_NO_BFLOAT16)
#define BERT_SERVING_BFLOAT16
typedef uint16_t Number;
#else
typedef float Number;
#endif

// A linear layer, x W^T + bias, that computes in Numbers or in 8-bit integers.
//
// weight: packed, see products.cpp. With 8-bit integers, the rest belongs to each column: `scale`, what an integer
// stands for, and `correction`, the sum of the column; and to each component of x: `smooth`, a factor that it is
// multiplied by first. Without integers, these are null. depth: numbers in a row of x; both are multiples of 16.
struct Linear {
  const void* weight;
  const float *bias, *scale, *correction, *smooth;
  int64_t depth, columns;
  bool is_int8() const { return scale != nullptr; }
};

// Layer normalization.
struct Norm {
  const float *weight, *bias;
  float epsilon;
};

// Rows of x, float32 or bfloat16.
struct Input {
  const void* data;
  int64_t count;
  bool is_bfloat16;
};

// Each function computes all rows of its result; `threads` is the number of threads that it may use.

// y = x W^T + b, followed by GELU if asked for.
void product(const Linear& linear, const Input& x, bool gelu, Number* y, int threads);

// y = norm(x W^T + b + residual). y and residual: float32; they may not overlap.
void product_and_norm(const Linear& linear, const Input& x, const float* residual, const Norm& norm, float* y,
                      int threads);

// y = norm(W2 gelu(W1 x + b1) + b2 + x). x and y: float32; they may not overlap.
void feed_forward(const Linear& up, const Linear& down, const Input& x, const Norm& norm, float* y, int threads);

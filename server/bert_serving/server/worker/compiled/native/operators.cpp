// The operators of a compiled graph, as PyTorch calls them. Their signatures are in operators.py.

#include <omp.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "packed_attention.h"
#include "products.h"
#include "tiles.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int64_t kThreaded = 1 << 14;  // with fewer numbers than this, a second thread costs more than it brings

template <typename T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

bool is_bfloat16(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::BFloat16; }

#ifdef BERT_SERVING_PRODUCTS

constexpr ScalarType kNumber = sizeof(Number) == 2 ? ScalarType::BFloat16 : ScalarType::Float;

// parts: weight, bias, smooth, scale and correction; the last three are empty without 8-bit integers.
Linear linear_of(const std::vector<Tensor>& parts, int64_t depth) {
  Linear linear{};
  linear.weight = parts[0].data_ptr();
  linear.bias = pointer<float>(parts[1]);
  linear.columns = parts[1].numel();
  linear.depth = depth;
  if (parts[2].numel() > 0) {
    linear.smooth = pointer<float>(parts[2]);
    linear.scale = pointer<float>(parts[3]);
    linear.correction = pointer<float>(parts[4]);
  }
  return linear;
}

Input input_of(const Tensor& x) {
  return {x.data_ptr(), x.numel() / x.size(x.dim() - 1), is_bfloat16(x)};
}

Tensor empty_result(const Tensor& x, int64_t columns, ScalarType type) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) shape.push_back(x.size(i));
  shape.push_back(columns);
  return torch::stable::new_empty(x, shape, type);
}

Tensor product_of(const Tensor& x, const std::vector<Tensor>& linear, bool gelu) {
  const Tensor input = torch::stable::contiguous(x);
  const Linear layer = linear_of(linear, x.size(x.dim() - 1));
  Tensor y = empty_result(x, layer.columns, kNumber);
  product(layer, input_of(input), gelu, pointer<Number>(y), omp_get_max_threads());
  return y;
}

Tensor product_and_norm_of(const Tensor& x, const std::vector<Tensor>& linear, const Tensor& residual,
                           const Tensor& weight, const Tensor& bias, double epsilon) {
  const Tensor input = torch::stable::contiguous(x), added = torch::stable::contiguous(residual);
  const Linear layer = linear_of(linear, x.size(x.dim() - 1));
  Tensor y = empty_result(x, layer.columns, ScalarType::Float);
  const Norm norm{pointer<float>(weight), pointer<float>(bias), static_cast<float>(epsilon)};
  product_and_norm(layer, input_of(input), pointer<float>(added), norm, pointer<float>(y), omp_get_max_threads());
  return y;
}

Tensor feed_forward_of(const Tensor& x, const std::vector<Tensor>& up, const std::vector<Tensor>& down,
                       const Tensor& weight, const Tensor& bias, double epsilon) {
  const Tensor input = torch::stable::contiguous(x);
  const Linear first = linear_of(up, x.size(x.dim() - 1)), second = linear_of(down, first.columns);
  Tensor y = empty_result(x, second.columns, ScalarType::Float);
  const Norm norm{pointer<float>(weight), pointer<float>(bias), static_cast<float>(epsilon)};
  feed_forward(first, second, input_of(input), norm, pointer<float>(y), omp_get_max_threads());
  return y;
}

#endif

// Returns x in the type, with contiguous rows.
Tensor rows_of(const Tensor& x, ScalarType type) {
  const Tensor y = x.scalar_type() == type ? x : torch::stable::to(x, type);
  return y.stride(3) == 1 ? y : torch::stable::contiguous(y);
}

// query, key, value: (1, N, T, D); returns (1, T, N, D), in the type of the value.
Tensor packed_attention_of(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& ends,
                           double scale, int64_t window) {
  const ScalarType type = value.scalar_type();
  const Tensor q = rows_of(query, type), k = rows_of(key, type), v = rows_of(value, type);
  const int64_t heads = q.size(1), tokens = q.size(2), width = q.size(3);
  Tensor output = torch::stable::new_empty(v, {1, tokens, heads, width});
  const int64_t strides[] = {q.stride(2), q.stride(1), k.stride(2), k.stride(1), v.stride(2), v.stride(1)};
  const int threads = q.numel() > kThreaded ? omp_get_max_threads() : 1;
  packed_attention(q.data_ptr(), k.data_ptr(), v.data_ptr(), output.data_ptr(), strides, pointer<int64_t>(ends),
                   ends.numel(), heads, width, static_cast<float>(scale), window, is_bfloat16(v), threads);
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bert_serving, CPU, library) {
  library.impl("packed_attention", TORCH_BOX(&packed_attention_of));
#ifdef BERT_SERVING_PRODUCTS
  library.impl("product", TORCH_BOX(&product_of));
  library.impl("product_and_norm", TORCH_BOX(&product_and_norm_of));
  library.impl("feed_forward", TORCH_BOX(&feed_forward_of));
#endif
}

// Bytes of a Number; 0 if there are no products.
extern "C" int32_t product_bytes() {
#ifdef BERT_SERVING_PRODUCTS
  return sizeof(Number);
#else
  return 0;
#endif
}

// Sets the number of threads of the parallel regions that the calling thread starts, and returns the number before.
extern "C" int32_t set_num_threads(int32_t count) {
  const int32_t before = omp_get_max_threads();
  omp_set_num_threads(count);
  return before;
}

// Whether the code uses AMX's tiles, which a process may not do before it has asked Linux.
extern "C" int32_t uses_tiles() {
#ifdef BERT_SERVING_TILES
  return 1;
#else
  return 0;
#endif
}

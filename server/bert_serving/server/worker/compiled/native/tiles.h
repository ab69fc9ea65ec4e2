// AMX's tiles: registers of 16 lines, which products of matrices read and write.
#pragma once

#include <cstdint>
#include <vector>

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && \
    !defined(BERT_SERVING_NO_AMX)
#define BERT_SERVING_TILES
#include <immintrin.h>

#include <atomic>
#endif

constexpr int64_t kLine = 64;      // bytes of a line
constexpr int64_t kTileRows = 16;  // lines of a tile

// Bytes that begin at the begin of a line. Tiles are loaded three times as fast from there.
class Lines {
 public:
  void fit(int64_t bytes) {
    if (bytes <= size_) return;
    storage_.resize(bytes + kLine);
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    begin_ = storage_.data() + (kLine - address % kLine) % kLine;
    size_ = bytes;
  }
  uint8_t* begin() const { return begin_; }

 private:
  std::vector<uint8_t> storage_;
  uint8_t* begin_ = nullptr;
  int64_t size_ = 0;
};

#ifdef BERT_SERVING_TILES

// Tiles are registers that a thread configures before it uses them.
struct Tiles {
  Tiles() {
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.bytes[i] = kLine, config.rows[i] = kTileRows;
    // Not _tile_loadconfig: some versions of GCC take it to read 8 bytes, and may leave out what sets the others.
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~Tiles() { _tile_release(); }
};

// Belongs before and after instructions that load and store tiles. The compiler does not know that they read and write
// memory (GCC 12), and could move what others write or read to their other side.
inline void order_memory() { std::atomic_signal_fence(std::memory_order_seq_cst); }

#else

struct Tiles {
  Tiles() {}
};

#endif

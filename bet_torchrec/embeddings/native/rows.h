// What the kernels know of tables: where an id's row is, and what its bytes read as.
//
// Every struct is a row of an int64 tensor that described.py makes. All memory is checked before it
// is touched: a batch by Bags::starts, an id by Tables::place.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace bet {

constexpr int64_t kAhead = 12;  // lookups between a prefetch and its use
// A row for a later update: its block in the high bits, its place there in the low ones; or -1.
constexpr int kBlockShift = 40;
constexpr int64_t kRowMask = (int64_t(1) << kBlockShift) - 1;

// What went wrong, where, and with which value; see operators.py for the words.
enum Problem : int64_t { kFine, kLengths, kOffsets, kTotal, kContradiction, kWeights, kId };
struct Fault {
  int64_t problem, place, value;
};

// A batch of jagged features, feature by feature: lengths, or offsets, or both. All are int32 or
// int64 but weights, one an id. The count of what is not given is -1.
struct Bags {
  int64_t features, bags, ids_count, lengths_count, offsets_count, weights_count;
  const void *ids, *lengths, *offsets;
  const float* weights;
  int64_t wide_ids, wide_lengths, wide_offsets;

  // Where each bag begins, features * bags + 1 of them; false, with the fault, if the batch
  // contradicts itself.
  bool starts(std::vector<int64_t>& out, Fault* fault) const {
    out.resize(features * bags + 1);
    return walk([&](int64_t i, int64_t start) { out[i] = start; }, fault);
  }

  // As above for features alone, features + 1 of them, which takes next to no memory.
  bool feature_starts(std::vector<int64_t>& out, Fault* fault) const {
    out.assign(features + 1, 0);
    int64_t feature = 0;
    return walk(
        [&](int64_t i, int64_t start) {
          while (feature <= features && i == feature * bags) out[feature++] = start;
        },
        fault);
  }

  // Of a checked batch: where one feature's bags begin, bags + 1 of them.
  void bag_starts(int64_t feature, int64_t first, int64_t* out) const {
    const int64_t from = feature * bags;
    for (int64_t b = 0; b <= bags; ++b) {
      if (offsets_count >= 0) {
        out[b] = offset(from + b);
      } else {
        out[b] = first;
        if (b < bags) first += length(from + b);
      }
    }
  }

 private:
  int64_t length(int64_t i) const {
    return wide_lengths ? static_cast<const int64_t*>(lengths)[i]
                        : static_cast<const int32_t*>(lengths)[i];
  }
  int64_t offset(int64_t i) const {
    return wide_offsets ? static_cast<const int64_t*>(offsets)[i]
                        : static_cast<const int32_t*>(offsets)[i];
  }

  // Calls `found(i, start of bag i)` for all bags and the end.
  template <class Found>
  bool walk(Found found, Fault* fault) const {
    const int64_t n = features * bags;
    auto fail = [&](Problem problem, int64_t place, int64_t value) {
      *fault = {problem, place, value};
      return false;
    };
    if (weights_count >= 0 && weights_count != ids_count) return fail(kWeights, 0, weights_count);
    if (lengths_count >= 0 && lengths_count != n) return fail(kLengths, 0, lengths_count);
    if (offsets_count >= 0 && offsets_count != n + 1) return fail(kOffsets, 0, offsets_count);
    if (offsets_count >= 0 && offset(0)) return fail(kOffsets, 0, offset(0));
    int64_t start = 0;
    for (int64_t i = 0; i < n; ++i) {
      found(i, start);
      int64_t end = start;
      if (offsets_count >= 0) {
        end = offset(i + 1);
        if (end < start || end > ids_count) return fail(kOffsets, i + 1, end);
      }
      if (lengths_count >= 0) {
        const int64_t own = length(i);
        if (own < 0) return fail(kLengths, i, own);
        if (offsets_count >= 0 && end - start != own) return fail(kContradiction, i, own);
        if (own > ids_count - start) return fail(kTotal, i, start + own);
        end = start + own;
      }
      start = end;
    }
    found(n, start);
    return start == ids_count || fail(kTotal, n, start);
  }
};

// One feature looked up in one table. column, dim: its columns of the output.
struct Slot {
  int64_t table, column, dim, mean;
};
// map: where its id map begins among all, -1 if ids are ranks. Its blocks: [first_block, end_block);
// alone: a row is in one of them at most, and they come in the order of ranks.
struct Table {
  int64_t rows, map, first_block, end_block, alone;
};
// Ranks [first, end), columns [column, column + width), in rows of `bytes` bytes, as `decoder` reads
// them. The row of rank r is (r - first) * stride % rows. coded: of column codes, how many columns
// have a grid, in numbers of `number` bytes; the grids lie behind the rows, and width is rounded up
// to whole eights.
struct Block {
  int64_t first, end, stride, rows, column, width, bytes, decoder, coded, number;

  bool holds(int64_t rank) const { return rank >= first && rank < end; }
  int64_t row(int64_t rank) const {
    const int64_t local = rank - first;
    return stride == 1 ? local : local * stride % rows;
  }
};

// All tables of a collection. base + memory[k]: address of block k's first row.
struct Tables {
  int64_t slots_count;
  const Slot* slots;
  const Table* tables;
  const Block* blocks;
  const int32_t* map;
  const uint8_t* base;
  const int64_t* memory;

  const uint8_t* row(int64_t block, int64_t at) const {
    return base + memory[block] + at * blocks[block].bytes;
  }
  // The first block from `block` on that holds a rank; end_block if none does.
  int64_t holder(const Table& table, int64_t rank, int64_t block) const {
    while (block < table.end_block && !blocks[block].holds(rank)) ++block;
    return block;
  }
};

// An id's rank and the first block with a row of it; end_block if there is none.
struct Place {
  int64_t rank, block;
};

// The places of ids [from, to) of one slot; false, with the fault, at an id out of range.
template <class Id>
bool places(const Bags& bags, const Tables& all, int64_t slot, int64_t from, int64_t to, Place* out,
            Fault* fault) {
  const Table table = all.tables[all.slots[slot].table];
  const Id* ids = static_cast<const Id*>(bags.ids);
  const int32_t* map = table.map < 0 ? nullptr : all.map + table.map;
  for (int64_t i = from; i < to; ++i) {
    const int64_t id = ids[i];
    if (id < 0 || id >= table.rows) {
      *fault = {kId, slot, id};
      return false;
    }
    if (map && i + kAhead < to && uint64_t(ids[i + kAhead]) < uint64_t(table.rows))
      __builtin_prefetch(map + ids[i + kAhead]);
    const int64_t rank = map ? map[id] : id;
    *out++ = {rank, all.holder(table, rank, table.first_block)};
  }
  return true;
}

inline float half(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
  if (rest < 0x400) {  // zero and denormals, by an integer, so that no mode of the CPU flushes them
    const float value = float(rest) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t whole = sign | (rest >= 0x7c00 ? (rest << 13) + (224u << 23) : (rest << 13) + (112u << 23));
  float value;
  std::memcpy(&value, &whole, 4);
  return value;
#endif
}

// How a block's rows read: an entry of this list and a case in `add_row` make a new format.
enum Decoder : int64_t { kFp32, kFp16, kInt8, kInt4, kInt2, kColumns };

typedef float Floats __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));

template <int Bits>
inline Floats eight_codes(const uint8_t* at) {
  if constexpr (Bits == 8) {
    typedef uint8_t Bytes __attribute__((vector_size(8)));
    Bytes bytes;
    std::memcpy(&bytes, at, 8);
#if defined(__AVX2__)
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&bytes))));
#else
    return __builtin_convertvector(bytes, Floats);
#endif
  } else {
    typedef int32_t Ints __attribute__((vector_size(32)));
    uint32_t word = 0;
    std::memcpy(&word, at, Bits);  // 8 codes are as many bytes as a code has bits
    const Words shifts = {0, Bits, 2 * Bits, 3 * Bits, 4 * Bits, 5 * Bits, 6 * Bits, 7 * Bits};
    const Words codes = ((Words{} + word) >> shifts) & ((1u << Bits) - 1);
    return __builtin_convertvector(reinterpret_cast<const Ints&>(codes), Floats);
  }
}

// to[j] += c * row[j] for the first `filled` columns, to[j] = c * row[j] for the others.
template <class Value, class Eight>
inline void add(float* to, int64_t width, int64_t filled, Value value, Eight eight) {
  int64_t j = 0;
  for (; j + 8 <= filled; j += 8) {
    Floats before;
    std::memcpy(&before, to + j, 32);
    before += eight(j);
    std::memcpy(to + j, &before, 32);
  }
  for (; j < filled; ++j) to[j] += value(j);
  for (; j % 8 && j < width; ++j) to[j] = value(j);
  for (; j + 8 <= width; j += 8) {
    const Floats found = eight(j);
    std::memcpy(to + j, &found, 32);
  }
  for (; j < width; ++j) to[j] = value(j);
}

template <int Bits>
inline void add_codes(const uint8_t* row, float c, float* to, int64_t width, int64_t filled) {
  const float scale = c * half(row), bias = c * half(row + 2);
  const uint8_t* codes = row + 4;
  constexpr int each = 8 / Bits;  // codes a byte, the first in its lowest bits
  add(
      to, width, filled,
      [&](int64_t j) {
        return scale * float((codes[j / each] >> (j % each * Bits)) & ((1 << Bits) - 1)) + bias;
      },
      [&](int64_t j) { return scale * eight_codes<Bits>(codes + j / each) + bias; });
}

// Column codes: each column in its own bits, its code in two bytes at most. Made anew for every
// task from what is kept of a block, scale and offset (fp32 or fp16) and bits (a byte) a column, in
// this order behind its last row. Eight columns are decoded from the 16 bytes that begin where the
// first one's code does.
struct Grid {
  static constexpr int64_t kLoad = 16;
  std::vector<float> scale, offset;
  std::vector<int32_t> byte;
  std::vector<uint32_t> shift, mask, shuffle;  // shuffle: where a column's two bytes are of 16
  int64_t bytes, safe;  // from row `safe` on, a load might reach behind what is the block's
  std::vector<uint8_t> copy;

  Grid(const Block& block, const uint8_t* rows)
      : scale(block.width), offset(block.width), byte(block.width), shift(block.width),
        mask(block.width), shuffle(block.width, 0x80808080u), bytes(block.bytes),
        copy(block.bytes + kLoad) {
    const int64_t n = block.coded;
    const uint8_t* at = rows + block.rows * block.bytes;
    int32_t place = 0;
    for (int64_t j = 0; j < n; ++j) {
      scale[j] = number(block, at + block.number * j);
      offset[j] = number(block, at + block.number * (n + j));
      const uint8_t bits = at[2 * block.number * n + j];
      byte[j] = place / 8;
      shift[j] = place % 8;
      mask[j] = (1u << bits) - 1;
      const uint32_t own = byte[j] - byte[j / 8 * 8];
      shuffle[j] = 0x80800000u | (own + 1) << 8 | own;
      place += bits;
    }
    for (int64_t j = n; j < block.width; ++j) byte[j] = byte[j / 8 * 8];
    // A row's last load ends at most kLoad bytes behind it; grids are the block's own memory too.
    const int64_t behind = (2 * block.number + 1) * n;
    const int64_t reaching = kLoad <= behind || !bytes ? 0 : (kLoad - behind + bytes - 1) / bytes;
    safe = bytes ? std::max<int64_t>(0, block.rows - reaching) : 0;
  }

  // The row, or where it may be read beyond its end.
  const uint8_t* readable(const uint8_t* row, int64_t number) {
    if (number < safe) return row;
    std::memcpy(copy.data(), row, bytes);
    return copy.data();
  }

  static float number(const Block& block, const uint8_t* at) {
    if (block.number == 2) return half(at);
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
};

inline void add_columns(const Grid& grid, const uint8_t* row, float c, float* to, int64_t width,
                        int64_t filled) {
  add(
      to, width, filled,
      [&](int64_t j) {
        const uint32_t word = row[grid.byte[j]] | uint32_t(row[grid.byte[j] + 1]) << 8;
        return c * (grid.scale[j] * float((word >> grid.shift[j]) & grid.mask[j]) + grid.offset[j]);
      },
      [&](int64_t j) {
        typedef int32_t Ints __attribute__((vector_size(32)));
        Words words, shift, mask;
        Floats scale, offset;
        std::memcpy(&shift, &grid.shift[j], 32);
        std::memcpy(&mask, &grid.mask[j], 32);
        std::memcpy(&scale, &grid.scale[j], 32);
        std::memcpy(&offset, &grid.offset[j], 32);
#if defined(__AVX2__)
        const __m128i found =
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + grid.byte[j]));
        const __m256i places =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&grid.shuffle[j]));
        words = Words(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(found), places));
#else
        for (int k = 0; k < 8; ++k) {
          const uint8_t* at = row + grid.byte[j + k];
          words[k] = at[0] | uint32_t(at[1]) << 8;
        }
#endif
        const Words codes = (words >> shift) & mask;
        return c * (scale * __builtin_convertvector(Ints(codes), Floats) + offset);
      });
}

inline void add_row(const Block& block, const uint8_t* row, float c, float* to, int64_t filled) {
  switch (block.decoder) {
    case kFp32:
      return add(
          to, block.width, filled,
          [&](int64_t j) {
            float value;
            std::memcpy(&value, row + 4 * j, 4);
            return c * value;
          },
          [&](int64_t j) {
            Floats values;
            std::memcpy(&values, row + 4 * j, 32);
            return c * values;
          });
    case kFp16:
      return add(
          to, block.width, filled, [&](int64_t j) { return c * half(row + 2 * j); },
          [&](int64_t j) {
#if defined(__F16C__) && defined(__AVX__)
            return Floats(c * _mm256_cvtph_ps(_mm_loadu_si128(
                                  reinterpret_cast<const __m128i*>(row + 2 * j))));
#else
            Floats values;
            for (int k = 0; k < 8; ++k) values[k] = c * half(row + 2 * (j + k));
            return values;
#endif
          });
    case kInt8:
      return add_codes<8>(row, c, to, block.width, filled);
    case kInt4:
      return add_codes<4>(row, c, to, block.width, filled);
    case kInt2:
      return add_codes<2>(row, c, to, block.width, filled);
  }
}

}  // namespace bet

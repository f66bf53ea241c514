// Pooled lookups in rows of many widths, and their fused updates, on CPU. Plain C interface, no
// dependencies: see kernels.py, which compiles and calls it.
//
// A "place" is where an id's row is: the block in the high bits, the row of the block in the low
// ones; -1 for a row of size 0.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kBlockShift = 40;
constexpr int64_t kRowMask = (int64_t(1) << kBlockShift) - 1;
constexpr int64_t kAhead = 12;  // bags or entries between a prefetch and its use

inline float* row_of(int64_t place, float* const* weights, const int64_t* widths) {
  const int64_t block = place >> kBlockShift;
  return weights[block] + (place & kRowMask) * widths[block];
}

inline void prefetch(const float* row, int64_t width) {
  for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(row + i, 1);
}

struct Entry {
  int64_t place;
  const float* gradient;
  float scale;
};

// Entries by place, stable, so that sums have one order whatever the threads. 11 bits a pass.
void sort_by_place(std::vector<Entry>& entries, int row_bits, int block_bits) {
  std::vector<Entry> other(entries.size());
  auto pass = [&](int shift, int bits) {
    std::vector<size_t> starts((size_t(1) << bits) + 1, 0);
    const int64_t mask = (int64_t(1) << bits) - 1;
    for (const Entry& e : entries) ++starts[((e.place >> shift) & mask) + 1];
    for (size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
    for (const Entry& e : entries) other[starts[(e.place >> shift) & mask]++] = e;
    entries.swap(other);
  };
  for (int shift = 0; shift < row_bits; shift += 11) pass(shift, std::min(11, row_bits - shift));
  if (block_bits) pass(kBlockShift, block_bits);
}

}  // namespace

extern "C" {

// Places of n ids of one table. Returns the index of the first id out of range, or -1.
// map: rank of each id, or null where ids are ranks. Per block: first rank, end, stride, rows.
int64_t bet_places(int64_t n, const int64_t* ids, int64_t rows, const int32_t* map, int64_t blocks,
                   const int64_t* first, const int64_t* end, const int64_t* stride,
                   const int64_t* block_rows, int64_t* places) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t id = ids[i];
    if (id < 0 || id >= rows) return i;
    const int64_t rank = map ? map[id] : id;
    int64_t k = 0;
    while (k < blocks && rank >= end[k]) ++k;
    if (k == blocks) {
      places[i] = -1;
      continue;
    }
    int64_t row = rank - first[k];
    if (stride[k] != 1) row = row * stride[k] % block_rows[k];
    places[i] = (k << kBlockShift) | row;
  }
  return -1;
}

// One feature's pooled rows into out, (bags, dim) with leading dimension ld. offsets: bags + 1,
// into places and bag_weights. scale: one a bag, or null.
void bet_forward(int64_t bags, const int64_t* offsets, const int64_t* places,
                 const float* bag_weights, const float* scale, float* const* weights,
                 const int64_t* widths, float* out, int64_t ld, int64_t dim, int threads) {
  const int64_t last = offsets[bags];
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t b = 0; b < bags; ++b) {
    float* to = out + b * ld;
    int64_t filled = 0;
    for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
      if (i + kAhead < last && places[i + kAhead] >= 0) {
        const int64_t ahead = places[i + kAhead];
        prefetch(row_of(ahead, weights, widths), widths[ahead >> kBlockShift]);
      }
      const int64_t place = places[i];
      if (place < 0) continue;
      const float* from = row_of(place, weights, widths);
      const int64_t width = widths[place >> kBlockShift];
      const float c = (bag_weights ? bag_weights[i] : 1.0f) * (scale ? scale[b] : 1.0f);
      const int64_t both = std::min(width, filled);
      if (c == 1.0f) {
        for (int64_t j = 0; j < both; ++j) to[j] += from[j];
        for (int64_t j = both; j < width; ++j) to[j] = from[j];
      } else {
        for (int64_t j = 0; j < both; ++j) to[j] += c * from[j];
        for (int64_t j = both; j < width; ++j) to[j] = c * from[j];
      }
      filled = std::max(filled, width);
    }
    if (filled < dim) std::memset(to + filled, 0, sizeof(float) * (dim - filled));
  }
}

// One table's update from the gradients of all its features.
// optimizer: 0 SGD, 1 row-wise Adagrad (state: one a row), 2 Adagrad (state: one a weight).
// Per feature: its offsets (bags + 1), the first column of its gradient, its scales or null.
void bet_update(int optimizer, int64_t features, int64_t bags, const int64_t* const* offsets,
                const int64_t* places, const float* bag_weights, const float* const* scales,
                const float* gradient, int64_t ld, const int64_t* columns, int64_t blocks,
                float* const* weights, float* const* states, const int64_t* widths,
                const int64_t* block_rows, float lr, float eps, int threads) {
  std::vector<Entry> entries;
  int64_t most = 0;
  for (int64_t f = 0; f < features; ++f) most += offsets[f][bags] - offsets[f][0];
  entries.reserve(most);
  for (int64_t f = 0; f < features; ++f)
    for (int64_t b = 0; b < bags; ++b)
      for (int64_t i = offsets[f][b]; i < offsets[f][b + 1]; ++i)
        if (places[i] >= 0)
          entries.push_back({places[i], gradient + b * ld + columns[f],
                             (bag_weights ? bag_weights[i] : 1.0f) *
                                 (scales[f] ? scales[f][b] : 1.0f)});
  const int64_t n = entries.size();
  // SGD is linear in the gradient: without threads the order of updates is free.
  if (optimizer == 0 && threads == 1) {
    for (int64_t i = 0; i < n; ++i) {
      if (i + kAhead < n) {
        const Entry& ahead = entries[i + kAhead];
        prefetch(row_of(ahead.place, weights, widths), widths[ahead.place >> kBlockShift]);
      }
      const Entry& e = entries[i];
      float* row = row_of(e.place, weights, widths);
      const int64_t width = widths[e.place >> kBlockShift];
      const float step = lr * e.scale;
      for (int64_t j = 0; j < width; ++j) row[j] -= step * e.gradient[j];
    }
    return;
  }
  int row_bits = 1, block_bits = 0;
  for (int64_t k = 0; k < blocks; ++k)
    while (block_rows[k] > (int64_t(1) << row_bits)) ++row_bits;
  while (blocks > (int64_t(1) << block_bits)) ++block_bits;
  sort_by_place(entries, row_bits, block_bits);
  std::vector<int64_t> groups;
  groups.reserve(n + 1);
  for (int64_t i = 0; i < n; ++i)
    if (i == 0 || entries[i].place != entries[i - 1].place) groups.push_back(i);
  groups.push_back(n);
  const int64_t widest = blocks ? *std::max_element(widths, widths + blocks) : 0;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> sum(widest);
#pragma omp for schedule(static)
    for (int64_t g = 0; g < int64_t(groups.size()) - 1; ++g) {
      if (g + kAhead + 1 < int64_t(groups.size())) {
        const Entry& ahead = entries[groups[g + kAhead]];
        prefetch(row_of(ahead.place, weights, widths), widths[ahead.place >> kBlockShift]);
        prefetch(ahead.gradient, widths[ahead.place >> kBlockShift]);
      }
      const int64_t place = entries[groups[g]].place, block = place >> kBlockShift;
      const int64_t width = widths[block], at = place & kRowMask;
      for (int64_t i = groups[g]; i < groups[g + 1]; ++i) {
        const Entry& e = entries[i];
        if (i == groups[g])
          for (int64_t j = 0; j < width; ++j) sum[j] = e.scale * e.gradient[j];
        else
          for (int64_t j = 0; j < width; ++j) sum[j] += e.scale * e.gradient[j];
      }
      float* row = weights[block] + at * width;
      if (optimizer == 0) {
        for (int64_t j = 0; j < width; ++j) row[j] -= lr * sum[j];
      } else if (optimizer == 1) {
        float squares = 0;
        for (int64_t j = 0; j < width; ++j) squares += sum[j] * sum[j];
        float& state = states[block][at];
        state += squares / width;
        const float step = lr / (std::sqrt(state) + eps);
        for (int64_t j = 0; j < width; ++j) row[j] -= step * sum[j];
      } else {
        float* state = states[block] + at * width;
        for (int64_t j = 0; j < width; ++j) {
          state[j] += sum[j] * sum[j];
          row[j] -= lr * sum[j] / (std::sqrt(state[j]) + eps);
        }
      }
    }
  }
}

}  // extern "C"

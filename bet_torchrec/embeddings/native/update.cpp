// The fused backward: one table's gradients summed row by row, and the rows updated in place.
#include <mutex>
#include <shared_mutex>

#include "rows.h"

using namespace bet;

namespace bet {
std::shared_mutex& rows_lock();
}

namespace {

enum Optimizer : int64_t { kSgd, kRowwiseAdagrad, kAdagrad };  // state: none; one a row; a weight

struct Entry {
  int64_t place;
  const float* gradient;
  float scale;
};

struct Rows {
  const Tables& all;
  const int64_t* states;

  float* weights(int64_t place) const {
    return reinterpret_cast<float*>(
        const_cast<uint8_t*>(all.row(place >> kBlockShift, place & kRowMask)));
  }
  int64_t width(int64_t place) const { return all.blocks[place >> kBlockShift].width; }
  // One a row, or as the weights.
  float* state(int64_t place, bool a_row) const {
    const int64_t block = place >> kBlockShift, row = place & kRowMask;
    const int64_t each = a_row ? 1 : all.blocks[block].bytes / int64_t(sizeof(float));
    return reinterpret_cast<float*>(states[block]) + row * each;
  }
  void prefetch(int64_t place) const {
    const float* row = weights(place);
    for (int64_t i = 0; i < width(place); i += 16) __builtin_prefetch(row + i, 1);
  }
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
  for (int shift = 0; shift < block_bits; shift += 11)
    pass(kBlockShift + shift, std::min(11, block_bits - shift));
}

// One table's update. SGD without threads needs no order: it is linear in the gradient.
void update(const Rows& rows, const Table& table, int64_t optimizer, std::vector<Entry>& entries,
            float lr, float eps, int64_t threads) {
  const int64_t n = entries.size();
  if (optimizer == kSgd && threads == 1) {
    for (int64_t i = 0; i < n; ++i) {
      if (i + kAhead < n) rows.prefetch(entries[i + kAhead].place);
      const Entry& e = entries[i];
      float* row = rows.weights(e.place);
      const int64_t width = rows.width(e.place);
      const float step = lr * e.scale;
      for (int64_t j = 0; j < width; ++j) row[j] -= step * e.gradient[j];
    }
    return;
  }
  int row_bits = 1, block_bits = 0;
  int64_t widest = 0;
  for (int64_t k = table.first_block; k < table.end_block; ++k) {
    while (rows.all.blocks[k].rows > (int64_t(1) << row_bits)) ++row_bits;
    widest = std::max(widest, rows.all.blocks[k].width);
  }
  while (table.end_block > (int64_t(1) << block_bits)) ++block_bits;
  sort_by_place(entries, row_bits, block_bits);
  std::vector<int64_t> groups;
  groups.reserve(n + 1);
  for (int64_t i = 0; i < n; ++i)
    if (i == 0 || entries[i].place != entries[i - 1].place) groups.push_back(i);
  groups.push_back(n);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> sum(widest);
#pragma omp for schedule(static)
    for (int64_t g = 0; g < int64_t(groups.size()) - 1; ++g) {
      if (g + kAhead + 1 < int64_t(groups.size())) {
        const Entry& ahead = entries[groups[g + kAhead]];
        rows.prefetch(ahead.place);
        for (int64_t i = 0; i < rows.width(ahead.place); i += 16)
          __builtin_prefetch(ahead.gradient + i);
      }
      const int64_t place = entries[groups[g]].place, width = rows.width(place);
      for (int64_t i = groups[g]; i < groups[g + 1]; ++i) {
        const Entry& e = entries[i];
        if (i == groups[g])
          for (int64_t j = 0; j < width; ++j) sum[j] = e.scale * e.gradient[j];
        else
          for (int64_t j = 0; j < width; ++j) sum[j] += e.scale * e.gradient[j];
      }
      float* row = rows.weights(place);
      if (optimizer == kSgd) {
        for (int64_t j = 0; j < width; ++j) row[j] -= lr * sum[j];
      } else if (optimizer == kRowwiseAdagrad) {
        float squares = 0;
        for (int64_t j = 0; j < width; ++j) squares += sum[j] * sum[j];
        float& state = *rows.state(place, true);
        state += squares / width;
        const float step = lr / (std::sqrt(state) + eps);
        for (int64_t j = 0; j < width; ++j) row[j] -= step * sum[j];
      } else {
        float* state = rows.state(place, false);
        for (int64_t j = 0; j < width; ++j) {
          state[j] += sum[j] * sum[j];
          row[j] -= lr * sum[j] / (std::sqrt(state[j]) + eps);
        }
      }
    }
  }
}

}  // namespace

extern "C" {

// Updates all rows looked up. Slots' features are the batch's in order; kept: what the lookup noted;
// states: address of each block's; gradient: (bags, ld). Several threads may call it: they take
// turns.
int64_t bet_update(const Bags* bags, const Tables* all, const int64_t* states, const int64_t* kept,
                   const float* gradient, int64_t ld, int64_t optimizer, float lr, float eps,
                   int64_t threads, Fault* fault) {
  *fault = {kFine, 0, 0};
  std::vector<int64_t> starts;
  if (!bags->starts(starts, fault)) return fault->problem;
  const std::unique_lock<std::shared_mutex> alone(rows_lock());
  std::vector<Entry> entries;
  for (int64_t first = 0, end; first < all->slots_count; first = end) {
    // A table's slots come one after the other.
    const int64_t table = all->slots[first].table;
    entries.clear();
    for (end = first; end < all->slots_count && all->slots[end].table == table; ++end) {
      const Slot& slot = all->slots[end];
      const int64_t* own = starts.data() + end * bags->bags;
      for (int64_t b = 0; b < bags->bags; ++b) {
        const float scale =
            slot.mean ? 1.0f / float(std::max<int64_t>(1, own[b + 1] - own[b])) : 1.0f;
        for (int64_t i = own[b]; i < own[b + 1]; ++i)
          if (kept[i] >= 0)
            entries.push_back({kept[i], gradient + b * ld + slot.column,
                               (bags->weights ? bags->weights[i] : 1.0f) * scale});
      }
    }
    update({*all, states}, all->tables[table], optimizer, entries, lr, eps, threads);
  }
  return kFine;
}

}  // extern "C"

// Pooled lookups in rows of many widths and formats: ids -> ranks -> rows -> output, in one pass.
#include <mutex>
#include <shared_mutex>

#include "rows.h"

using namespace bet;

namespace bet {
// Held by those who train: an update alone, lookups together.
std::shared_mutex& rows_lock() {
  static std::shared_mutex lock;
  return lock;
}
}  // namespace bet

namespace {

constexpr int64_t kTask = 512;  // bags

// Some bags of one slot. kept: where to note each id's block and row for a later update, or null.
template <class Id>
bool pool(const Bags& bags, const Tables& all, const int64_t* starts, int64_t slot, int64_t first,
          int64_t end, float* out, int64_t ld, int64_t* kept, std::vector<Place>& found,
          Fault* fault) {
  const Slot own = all.slots[slot];
  const Table table = all.tables[own.table];
  const int64_t from = starts[first], to = starts[end];
  if (int64_t(found.size()) < to - from) found.resize(to - from);
  if (!places<Id>(bags, all, slot, from, to, found.data(), fault)) return false;
  std::vector<Grid> grids;
  for (int64_t k = table.first_block; k < table.end_block; ++k)
    if (all.blocks[k].decoder == kColumns) grids.emplace_back(all.blocks[k], all.row(k, 0));
  for (int64_t b = first; b < end; ++b) {
    float* columns = out + b * ld + own.column;
    int64_t filled = 0;
    const float scale =
        own.mean ? 1.0f / float(std::max<int64_t>(1, starts[b + 1] - starts[b])) : 1.0f;
    for (int64_t i = starts[b]; i < starts[b + 1]; ++i) {
      if (i + kAhead < to && found[i + kAhead - from].block < table.end_block) {
        const Place& ahead = found[i + kAhead - from];
        const Block& block = all.blocks[ahead.block];
        const uint8_t* row = all.row(ahead.block, block.row(ahead.rank));
        for (int64_t byte = 0; byte < block.bytes; byte += 64) __builtin_prefetch(row + byte);
        __builtin_prefetch(row + block.bytes - 1);
      }
      const float c = (bags.weights ? bags.weights[i] : 1.0f) * scale;
      const Place at = found[i - from];
      int64_t k = at.block, reach = 0;
      if (kept) kept[i] = -1;
      while (k < table.end_block) {
        const Block& block = all.blocks[k];
        const int64_t row = block.row(at.rank);
        float* to = columns + block.column;
        const int64_t known = std::min(block.width, std::max<int64_t>(0, filled - block.column));
        if (block.decoder == kColumns) {  // then all of the table's blocks are so
          Grid& grid = grids[k - table.first_block];
          add_columns(grid, grid.readable(all.row(k, row), row), c, to, block.width, known);
        } else {
          add_row(block, all.row(k, row), c, to, known);
        }
        reach = block.column + block.width;
        if (kept) kept[i] = (k << kBlockShift) | row;
        k = table.alone ? table.end_block : all.holder(table, at.rank, k + 1);
      }
      filled = std::max(filled, reach);
    }
    if (filled < own.dim) std::memset(columns + filled, 0, sizeof(float) * (own.dim - filled));
  }
  return true;
}

}  // namespace

extern "C" {

// All slots into out, (bags, ld). features: each slot's feature in the batch. kept: a place an id,
// where slots' features are the batch's in order, or null. Returns the fault's problem.
int64_t bet_lookup(const Bags* bags, const Tables* all, const int64_t* features, float* out,
                   int64_t ld, int64_t* kept, int64_t threads, Fault* fault) {
  *fault = {kFine, 0, 0};
  std::vector<int64_t> starts;
  if (!bags->starts(starts, fault)) return fault->problem;
  std::shared_lock<std::shared_mutex> together(rows_lock(), std::defer_lock);
  if (kept) together.lock();
  const int64_t each = (bags->bags + kTask - 1) / kTask, tasks = all->slots_count * each;
  const auto work = bags->wide_ids ? pool<int64_t> : pool<int32_t>;
#pragma omp parallel num_threads(threads) if (threads > 1 && tasks > 1)
  {
    std::vector<Place> found;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t slot = task / each, first = task % each * kTask;
      Fault own = {kFine, 0, 0};
      if (!work(*bags, *all, starts.data() + features[slot] * bags->bags, slot, first,
                std::min(bags->bags, first + kTask), out, ld, kept, found, &own))
#pragma omp critical
        *fault = own;
    }
  }
  return fault->problem;
}

}  // extern "C"

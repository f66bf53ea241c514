// From ids to rows of blocks: each (slot, block) pair gets its share of every bag.
//
// Twice over the ids, first to count and then to write, so that nothing is kept but what comes out.
#include "rows.h"

using namespace bet;

namespace {

// What a thread needs room for.
struct Scratch {
  std::vector<Place> places;
  std::vector<int64_t> starts, next;
};

// Calls `found(i, bag, block, rank)` for every row of every id of a slot, bag by bag.
template <class Id, class Found>
bool each_row(const Bags& bags, const Tables& all, int64_t slot, Scratch& scratch, Fault* fault,
              Found found) {
  constexpr int64_t kPiece = 4096;  // ids
  const Table table = all.tables[all.slots[slot].table];
  const std::vector<int64_t>& starts = scratch.starts;
  const int64_t end = starts[bags.bags];
  int64_t bag = 0;
  scratch.places.resize(kPiece);
  for (int64_t from = starts[0]; from < end; from += kPiece) {
    const int64_t to = std::min(end, from + kPiece);
    if (!places<Id>(bags, all, slot, from, to, scratch.places.data(), fault)) return false;
    for (int64_t i = from; i < to; ++i) {
      while (i >= starts[bag + 1]) ++bag;
      const Place at = scratch.places[i - from];
      for (int64_t k = at.block; k < table.end_block;
           k = table.alone ? table.end_block : all.holder(table, at.rank, k + 1))
        found(i, bag, k, at.rank);
    }
  }
  return true;
}

template <class Id>
bool count(const Bags& bags, const Tables& all, int64_t slot, int64_t pair, int32_t* lengths,
           int64_t* totals, Scratch& scratch, Fault* fault) {
  const Table table = all.tables[all.slots[slot].table];
  const int64_t blocks = table.end_block - table.first_block;
  std::fill(lengths + pair * bags.bags, lengths + (pair + blocks) * bags.bags, 0);
  std::fill(totals + pair, totals + pair + blocks, 0);
  return each_row<Id>(bags, all, slot, scratch, fault,
                      [&](int64_t, int64_t bag, int64_t k, int64_t) {
                        const int64_t p = pair + k - table.first_block;
                        ++lengths[p * bags.bags + bag];
                        ++totals[p];
                      });
}

template <class Id>
bool write(const Bags& bags, const Tables& all, int64_t slot, int64_t pair, const int64_t* ends,
           void* values, int64_t* chosen, Scratch& scratch, Fault* fault) {
  const Table table = all.tables[all.slots[slot].table];
  Id* out = static_cast<Id*>(values);
  int64_t* const next = scratch.next.data();  // of each of the slot's pairs
  for (int64_t k = table.first_block, p = pair; k < table.end_block; ++k, ++p)
    next[k - table.first_block] = p ? ends[p - 1] : 0;
  ends += pair;
  return each_row<Id>(bags, all, slot, scratch, fault,
                      [&](int64_t i, int64_t, int64_t k, int64_t rank) {
                        const int64_t at = next[k - table.first_block]++;
                        if (at >= ends[k - table.first_block]) return;  // ids changed meanwhile
                        out[at] = Id(all.blocks[k].row(rank));
                        if (chosen) chosen[at] = i;
                      });
}

// `work(slot, scratch, fault)` for all slots, with their bags' starts; the fault's problem.
template <class Work>
int64_t each_slot(const Bags& bags, const Tables& all, const int64_t* features, int64_t threads,
                  int64_t pairs, Fault* fault, Work work) {
  *fault = {kFine, 0, 0};
  std::vector<int64_t> firsts;
  if (!bags.feature_starts(firsts, fault)) return fault->problem;
#pragma omp parallel num_threads(threads) if (threads > 1 && all.slots_count > 1)
  {
    Scratch scratch;
    scratch.starts.resize(bags.bags + 1);
    scratch.next.resize(pairs);
#pragma omp for schedule(dynamic)
    for (int64_t slot = 0; slot < all.slots_count; ++slot) {
      Fault own = {kFine, 0, 0};
      bags.bag_starts(features[slot], firsts[features[slot]], scratch.starts.data());
      if (!work(slot, scratch, &own))
#pragma omp critical
        *fault = own;
    }
  }
  return fault->problem;
}

}  // namespace

extern "C" {

// lengths (pairs, bags) and totals (pairs,): firsts[slot] is the first of a slot's pairs, one a
// block. features: each slot's feature in the batch.
int64_t bet_route_count(const Bags* bags, const Tables* all, const int64_t* features,
                        const int64_t* firsts, int32_t* lengths, int64_t* totals, int64_t threads,
                        Fault* fault) {
  const auto work = bags->wide_ids ? count<int64_t> : count<int32_t>;
  return each_slot(*bags, *all, features, threads, 0, fault,
                   [&](int64_t slot, Scratch& scratch, Fault* own) {
                     return work(*bags, *all, slot, firsts[slot], lengths, totals, scratch, own);
                   });
}

// values, of the ids' type: rows of blocks, pair after pair; ends (pairs,): the sums of what was
// counted. chosen: the id that each value is of, or null.
int64_t bet_route_write(const Bags* bags, const Tables* all, const int64_t* features,
                        const int64_t* firsts, const int64_t* ends, int64_t pairs, void* values,
                        int64_t* chosen, int64_t threads, Fault* fault) {
  const auto work = bags->wide_ids ? write<int64_t> : write<int32_t>;
  return each_slot(*bags, *all, features, threads, pairs, fault,
                   [&](int64_t slot, Scratch& scratch, Fault* own) {
                     return work(*bags, *all, slot, firsts[slot], ends, values, chosen, scratch,
                                 own);
                   });
}

}  // extern "C"

/* The two passes over the gradients of K tasks on the CPU, along one table of addresses.
 *
 *     gram:     out[s, i, j] = sum over the parameters p of segment s  g_i[p] . g_j[p]
 *     combine:  g[p] <- sum_k w[s(p), k] g_k[p]                 into the first gradient there is
 *
 * A table [P, K] says where each gradient starts, 0 where it is absent. Threads share its bytes, not
 * its tensors, and each reads every element once. Products are added up in float32 over a few dozen
 * terms a lane, in double from stretch to stretch: right to 1e-9 on usual data, and 1e-6 on any. A
 * segment whose sums of squares leave what float32 can hold is taken again in double.
 *
 * Up to ALL tasks have all their pairs in registers; more are multiplied four by four, over a
 * stretch that stays in cache meanwhile. What is short, and bf16 and fp16 of many tasks, is packed
 * into such a stretch.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

/* STRETCH lanes' turns are added up in float32. STREAMS rows are what a processor fetches ahead by
 * itself; of more, what lies AHEAD elements is asked for. */
enum { TILE = 4, ALL = 8, STRETCH = 32 * LANES, SHORT = 256, MIXED = 2048 };
enum { LINE = 64, STREAMS = 7, AHEAD = 256 };

enum { F32, F64, BF16, F16 };
static const int WIDTH[] = {4, 8, 2, 2};

#define LOW 1e-22 /* float32 sums of squares outside of these may have lost terms, see eager.py */
#define HIGH 1e37
#define SMALL 0x1p-100 /* weights outside of these need double */
#define LARGE 0x1p100

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define SIMD _Pragma("omp simd")

typedef float float_lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float float_half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef double double_lanes __attribute__((vector_size(4 * LANES), aligned(8), may_alias));
typedef uint16_t half_lanes __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- numbers ---- */

INLINE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float from_F32(float x) { return x; }
INLINE double from_F64(double x) { return x; }
INLINE float from_BF16(uint16_t x) { return as_float((uint32_t)x << 16); }

/* Normal numbers by moving the exponent, subnormal ones by subtracting the implicit bit. */
INLINE float from_F16(uint16_t x) {
    uint32_t word = (uint32_t)x << 16, twice = word + word;
    uint32_t normal = as_bits(as_float((twice >> 4) + (0xE0u << 23)) * 0x1p-112f);
    uint32_t subnormal = as_bits(as_float((twice >> 17) | (126u << 23)) - 0.5f);
    return as_float((word & 0x80000000u) | (twice < (1u << 27) ? subnormal : normal));
}

/* The same for lanes of a row. */
INLINE float_lanes load_F32(const void *x, int64_t e) {
    return *(const float_lanes *)((const float *)x + e);
}

INLINE double_lanes load_F64(const void *x, int64_t e) {
    return *(const double_lanes *)((const double *)x + e);
}

INLINE words high_words(const void *x, int64_t e) {
    return __builtin_convertvector(*(const half_lanes *)((const uint16_t *)x + e), words) << 16;
}

INLINE float_lanes load_BF16(const void *x, int64_t e) { return (float_lanes)high_words(x, e); }

INLINE float_lanes load_F16(const void *x, int64_t e) {
    words word = high_words(x, e);
    words twice = word + word, small = (words)(twice < (1u << 27));
    words normal = (words)((float_lanes)((twice >> 4) + (0xE0u << 23)) * 0x1p-112f);
    words subnormal = (words)((float_lanes)((twice >> 17) | (126u << 23)) - 0.5f);
    return (float_lanes)((word & 0x80000000u) | (small & subnormal) | (~small & normal));
}

INLINE float to_F32(double x) { return (float)x; }
INLINE double to_F64(double x) { return x; }

/* Rounded to nearest, ties to even. */
INLINE uint16_t to_BF16(double wide) {
    uint32_t bits = as_bits((float)wide);
    uint16_t rounded = (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
    return (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0 : rounded;
}

/* The float adder rounds: a number is added whose last bit is the half's. */
INLINE uint16_t to_F16(double wide) {
    float x = (float)wide;
    uint32_t word = as_bits(x), twice = word + word, bias = twice & 0xFF000000u;
    float base = (as_float(word & 0x7FFFFFFFu) * 0x1p112f) * 0x1p-110f;
    if (bias < 0x71000000u) bias = 0x71000000u;
    uint32_t bits = as_bits(as_float((bias >> 1) + 0x07800000u) + base);
    uint32_t half = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu);
    return (uint16_t)((word >> 16 & 0x8000u) | (twice > 0xFF000000u ? 0x7E00u : half));
}

/* ---- the table ---- */

typedef struct {
    int64_t parameters, tasks, segment_count;
    const char *const *addresses;           /* [P, K] */
    const int64_t *sizes, *segments;        /* [P] */
    const uint8_t *kinds;                   /* [P] */
    int64_t *order;                         /* [P], sorted by segment */
    int64_t *before;                        /* [P + 1], the bytes before each, in that order */
} table;

typedef struct {
    int64_t number, element; /* in `order`, and within that parameter */
} place;

enum { NO_MEMORY = 1, NO_SEGMENT = 2 };

static int arrange(table *t) {
    int64_t *next = calloc(t->segment_count + 1, sizeof *next);
    t->order = malloc((2 * t->parameters + 1) * sizeof *t->order);
    if (!next || !t->order) {
        free(next);
        return NO_MEMORY;
    }
    t->before = t->order + t->parameters;
    for (int64_t p = 0; p < t->parameters; p++) {
        if (t->segments[p] < 0 || t->segments[p] >= t->segment_count) {
            free(next);
            return NO_SEGMENT;
        }
        next[t->segments[p] + 1]++;
    }
    for (int64_t s = 0; s < t->segment_count; s++) next[s + 1] += next[s];
    for (int64_t p = 0; p < t->parameters; p++) t->order[next[t->segments[p]]++] = p;
    free(next);
    t->before[0] = 0;
    for (int64_t n = 0; n < t->parameters; n++) {
        int64_t p = t->order[n], present = 0;
        for (int64_t k = 0; k < t->tasks; k++) present += t->addresses[p * t->tasks + k] != 0;
        t->before[n + 1] = t->before[n] + t->sizes[p] * present * WIDTH[t->kinds[p]];
    }
    return 0;
}

/* Where a part of the bytes starts. */
static place cut(const table *t, int part, int parts) {
    place at = {part ? t->parameters : 0, 0};
    if (part == 0 || part == parts) return at;
    int64_t bytes = t->before[t->parameters] / parts * part, low = 0;
    while (low + 1 < at.number) { /* before[low] <= bytes < before[at.number] */
        int64_t middle = (low + at.number) / 2;
        if (t->before[middle] <= bytes) low = middle;
        else at.number = middle;
    }
    int64_t bytes_per_element = (t->before[low + 1] - t->before[low]) / t->sizes[t->order[low]];
    at.number = low;
    at.element = (bytes - t->before[low]) / bytes_per_element / 64 * 64;
    return at;
}

/* ---- gram ---- */

/* What a thread works with. */
typedef struct {
    const table *t;
    place from, to;
    int64_t filled;          /* the elements of the panel's rows so far */
    double_lanes *totals;    /* [K (K + 1) / 2] of the segment: pairs (0, 0) (0, 1) .. (1, 1) .. */
    void *panel;             /* [K, STRETCH], packed rows */
    uint8_t *used, *there;   /* [K]: whether a row is in the panel; whether a task has any element */
    const void **rows;       /* [K + TILE] */
    int *ids;                /* [K], the task of each row */
} bench;

INLINE int64_t pair(int64_t tasks, int64_t i, int64_t j) { return i * tasks - i * (i - 1) / 2 + j - i; }

INLINE void add_float(double_lanes *total, float_lanes sum) {
#if defined(__AVX512F__) /* GCC 12 makes fifteen instructions of the lines below */
    __m512 lanes = (__m512)sum;
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(lanes), 1));
    *total += (double_lanes)(_mm512_cvtps_pd(_mm512_castps512_ps256(lanes)) + _mm512_cvtps_pd(high));
#else
    union {
        float_lanes lanes;
        float_half halves[2];
    } parts = {sum};
    *total += __builtin_convertvector(parts.halves[0], double_lanes) +
              __builtin_convertvector(parts.halves[1], double_lanes);
#endif
}

INLINE void add_double(double_lanes *total, double_lanes sum) { *total += sum; }

/* All pairs of K rows; n is a multiple of LANES. */
#define TRIANGLE(K, KIND, T)                                                                       \
    static void triangle_##K##_##KIND(const void *const *x, int64_t n, T##_lanes *out) {           \
        enum { STEP = sizeof(T##_lanes) / sizeof(T) };                                             \
        T##_lanes sum[K * (K + 1) / 2];                                                            \
        memset(sum, 0, sizeof sum);                                                                \
        for (int64_t e = 0; e < n; e += STEP) {                                                    \
            T##_lanes now[K];                                                                      \
            UNROLL for (int k = 0; k < K; k++) {                                                   \
                if (K > STREAMS)                                                                   \
                    __builtin_prefetch((const char *)x[k] + (e + AHEAD) * WIDTH[KIND]);            \
                now[k] = load_##KIND(x[k], e);                                                     \
            }                                                                                      \
            int p = 0;                                                                             \
            UNROLL for (int i = 0; i < K; i++)                                                     \
                UNROLL for (int j = i; j < K; j++, p++) sum[p] += now[i] * now[j];                 \
        }                                                                                          \
        memcpy(out, sum, sizeof sum);                                                              \
    }

#define TRIANGLES(KIND, T)                                                                         \
    TRIANGLE(1, KIND, T)                                                                           \
    TRIANGLE(2, KIND, T)                                                                           \
    TRIANGLE(3, KIND, T)                                                                           \
    TRIANGLE(4, KIND, T)                                                                           \
    TRIANGLE(5, KIND, T)                                                                           \
    TRIANGLE(6, KIND, T)                                                                           \
    TRIANGLE(7, KIND, T)                                                                           \
    TRIANGLE(8, KIND, T)                                                                           \
    static void (*const triangles_##KIND[])(const void *const *, int64_t, T##_lanes *) = {         \
        triangle_1_##KIND, triangle_2_##KIND, triangle_3_##KIND, triangle_4_##KIND,                \
        triangle_5_##KIND, triangle_6_##KIND, triangle_7_##KIND, triangle_8_##KIND};

TRIANGLES(F32, float)
TRIANGLES(BF16, float)
TRIANGLES(F16, float)
TRIANGLES(F64, double)

static void triangle_float(int kind, int count, const void *const *x, int64_t n, float_lanes *out) {
    switch (kind) {
    case BF16: triangles_BF16[count - 1](x, n, out); break;
    case F16: triangles_F16[count - 1](x, n, out); break;
    default: triangles_F32[count - 1](x, n, out);
    }
}

static void triangle_double(int kind, int count, const void *const *x, int64_t n, double_lanes *out) {
    (void)kind;
    triangles_F64[count - 1](x, n, out);
}

/* TILE rows with TILE others, while the next TILE are fetched. */
#define SQUARE(T)                                                                                  \
    static void square_##T(const T *const *x, const T *const *y, const T *const *next, int64_t n,  \
                           T##_lanes *out) {                                                       \
        enum { STEP = sizeof(T##_lanes) / sizeof(T) };                                             \
        T##_lanes sum[TILE][TILE];                                                                 \
        memset(sum, 0, sizeof sum);                                                                \
        for (int64_t e = 0; e < n; e += STEP) {                                                    \
            T##_lanes right[TILE];                                                                 \
            UNROLL for (int j = 0; j < TILE; j++) __builtin_prefetch(next[j] + e);                 \
            UNROLL for (int j = 0; j < TILE; j++) right[j] = *(const T##_lanes *)(y[j] + e);       \
            UNROLL for (int i = 0; i < TILE; i++) {                                                \
                T##_lanes left = *(const volatile T##_lanes *)(x[i] + e);                          \
                UNROLL for (int j = 0; j < TILE; j++) sum[i][j] += left * right[j];                \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int i = 0; i < TILE; i++)                                                      \
            UNROLL for (int j = 0; j < TILE; j++) out[i * TILE + j] = sum[i][j];                   \
    }

/* Add the products of b->rows, n elements each, to the totals. */
#define MULTIPLY(T)                                                                                \
    static void multiply_##T(bench *b, int kind, int count, int64_t n) {                           \
        const T **x = (const T **)b->rows;                                                         \
        const int *ids = b->ids;                                                                   \
        int64_t tasks = b->t->tasks;                                                               \
        T##_lanes sums[ALL * (ALL + 1) / 2];                                                       \
        if (count <= ALL) {                                                                        \
            triangle_##T(kind, count, b->rows, n, sums);                                           \
            T##_lanes *sum = sums;                                                                 \
            for (int i = 0; i < count; i++)                                                        \
                for (int j = i; j < count; j++)                                                    \
                    add_##T(b->totals + pair(tasks, ids[i], ids[j]), *sum++);                      \
            return;                                                                                \
        }                                                                                          \
        for (int k = count; k % TILE; k++) x[k] = x[count - 1];                                    \
        int side = (count + TILE - 1) / TILE, row = 0;                                             \
        int64_t bytes = n * sizeof(T), byte = 0;                                                   \
        int per_tile = 1 + count * bytes / LINE / (side * (side + 1) / 2);                         \
        for (int i = 0; i < count; i += TILE)                                                      \
            for (int j = i; j < count; j += TILE) {                                                \
                int next = j + TILE < count ? j + TILE : i + TILE < count ? i + TILE : 0;          \
                for (int l = 0; l < per_tile && row < count; l++) {                                \
                    __builtin_prefetch((const char *)(x[row] + n) + byte, 0, 2);                   \
                    if ((byte += LINE) >= bytes) byte = 0, row++;                                  \
                }                                                                                  \
                square_##T(x + i, x + j, x + next, n, sums);                                       \
                for (int a = i; a < i + TILE && a < count; a++)                                    \
                    for (int c = j > a ? j : a; c < j + TILE && c < count; c++)                    \
                        add_##T(b->totals + pair(tasks, ids[a], ids[c]),                           \
                                sums[(a - i) * TILE + c - j]);                                     \
            }                                                                                      \
    }

#define COPY(T, KIND, S)                                                                           \
    case KIND: {                                                                                   \
        const S *x = (const S *)source + start;                                                    \
        SIMD for (int64_t e = 0; e < n; e++) out[e] = (T)from_##KIND(x[e]);                        \
        break;                                                                                     \
    }

#define PACK(T)                                                                                    \
    INLINE void widen_##T(T *out, int kind, const void *source, int64_t start, int64_t n) {        \
        switch (kind) {                                                                            \
            COPY(T, F32, float)                                                                    \
            COPY(T, F64, double)                                                                   \
            COPY(T, BF16, uint16_t)                                                                \
            COPY(T, F16, uint16_t)                                                                 \
        }                                                                                          \
    }                                                                                              \
    /* Multiply what is packed, filled up with zeros. */                                           \
    static void flush_##T(bench *b) {                                                              \
        if (!b->filled) return;                                                                    \
        int64_t n = (b->filled + LANES - 1) / LANES * LANES;                                       \
        int count = 0;                                                                             \
        for (int k = 0; k < b->t->tasks; k++)                                                      \
            if (b->used[k]) {                                                                      \
                T *row = (T *)b->panel + k * STRETCH;                                              \
                memset(row + b->filled, 0, (n - b->filled) * sizeof(T));                           \
                b->ids[count] = k;                                                                 \
                b->rows[count++] = row;                                                            \
            }                                                                                      \
        multiply_##T(b, sizeof(T) == 4 ? F32 : F64, count, n);                                     \
        memset(b->used, 0, b->t->tasks);                                                           \
        b->filled = 0;                                                                             \
    }                                                                                              \
    /* Append n elements to the panel, zeros to the rows of tasks that have none. */               \
    static void append_##T(bench *b, int64_t p, int64_t start, int64_t n) {                        \
        const char *const *addresses = b->t->addresses + p * b->t->tasks;                          \
        while (n) {                                                                                \
            int64_t length = least(n, STRETCH - b->filled);                                     \
            for (int k = 0; k < b->t->tasks; k++) {                                                \
                T *row = (T *)b->panel + k * STRETCH;                                              \
                if (addresses[k]) {                                                                \
                    if (!b->used[k]) memset(row, 0, b->filled * sizeof(T));                        \
                    b->used[k] = 1;                                                                \
                    widen_##T(row + b->filled, b->t->kinds[p], addresses[k], start, length);       \
                } else if (b->used[k]) {                                                           \
                    memset(row + b->filled, 0, length * sizeof(T));                                \
                }                                                                                  \
            }                                                                                      \
            b->filled += length, start += length, n -= length;                                     \
            if (b->filled == STRETCH) flush_##T(b);                                             \
        }                                                                                          \
    }                                                                                              \
    /* Add the products of some parameters' elements, those of float64 or all others, in T. */     \
    static void walk_##T(bench *b, int64_t number, int64_t stop, int float64) {                    \
        const table *t = b->t;                                                                     \
        for (; number < stop; number++) {                                                          \
            int64_t p = t->order[number], e = number == b->from.number ? b->from.element : 0;      \
            int64_t end = number == b->to.number ? b->to.element : t->sizes[p];                    \
            int kind = t->kinds[p], plain = kind == (sizeof(T) == 4 ? F32 : F64);                  \
            if ((t->kinds[p] == F64) != float64 || e >= end) continue;                             \
            int count = 0;                                                                         \
            for (int k = 0; k < t->tasks; k++)                                                     \
                if (t->addresses[p * t->tasks + k]) b->there[k] = 1, count++;                      \
            if (!count) continue;                                                                  \
            plain |= sizeof(T) == 4 && count <= ALL; /* few rows are widened in registers */       \
            for (int64_t n; e < end; e += n) {                                                     \
                n = least(STRETCH, end - e);                                                    \
                if (!plain || n < SHORT) {                                                         \
                    append_##T(b, p, e, n);                                                        \
                    continue;                                                                      \
                }                                                                                  \
                n = n / LANES * LANES;                                                             \
                count = 0;                                                                         \
                for (int k = 0; k < t->tasks; k++) {                                               \
                    const char *start = t->addresses[p * t->tasks + k];                            \
                    if (!start) continue;                                                          \
                    b->ids[count] = k;                                                             \
                    b->rows[count++] = start + e * WIDTH[kind];                                    \
                }                                                                                  \
                multiply_##T(b, kind, count, n);                                                   \
            }                                                                                      \
        }                                                                                          \
        flush_##T(b);                                                                              \
    }

#define PRODUCTS(T)                                                                                \
    SQUARE(T)                                                                                      \
    MULTIPLY(T)                                                                                    \
    PACK(T)

PRODUCTS(float)
PRODUCTS(double)

INLINE double total(const double_lanes *lanes) {
    double sum = 0;
    for (int l = 0; l < LANES / 2; l++) sum += (*lanes)[l];
    return sum;
}

/* Whether a float32 sum of squares may have lost terms; NaN fails every comparison. */
static int doubtful(const bench *b) {
    for (int64_t k = 0; k < b->t->tasks; k++) {
        double square = total(b->totals + pair(b->t->tasks, k, k));
        if (b->there[k] && !(square > LOW && square < HIGH)) return 1;
    }
    return 0;
}

/* Write the products of parameters `number` to `stop`, of one segment, to out [K, K]. */
static void segment(bench *b, int64_t number, int64_t stop, double *out) {
    int64_t tasks = b->t->tasks, pairs = tasks * (tasks + 1) / 2;
    memset(b->totals, 0, pairs * sizeof *b->totals);
    memset(b->there, 0, tasks);
    walk_float(b, number, stop, 0);
    if (doubtful(b)) {
        memset(b->totals, 0, pairs * sizeof *b->totals);
        walk_double(b, number, stop, 0);
    }
    walk_double(b, number, stop, 1);
    const double_lanes *lanes = b->totals;
    for (int64_t i = 0; i < tasks; i++)
        for (int64_t j = i; j < tasks; j++) out[i * tasks + j] = out[j * tasks + i] = total(lanes++);
}

/* One thread's part. Its first segment may be another's last: that goes to `first`, [K, K]. */
static int part_of_gram(const table *t, place from, place to, double *first, double *out) {
    int64_t tasks = t->tasks;
    bench b = {.t = t, .from = from, .to = to};
    b.totals = malloc(tasks * (tasks + 1) / 2 * sizeof *b.totals);
    b.panel = malloc(tasks * STRETCH * sizeof(double));
    b.rows = malloc((tasks + TILE) * sizeof *b.rows);
    b.ids = malloc(tasks * sizeof *b.ids);
    b.used = calloc(tasks, 2);
    b.there = b.used + tasks;
    int failed = !b.totals || !b.panel || !b.rows || !b.ids || !b.used;
    int64_t stop, last = to.number + (to.element > 0);
    for (int64_t n = from.number; !failed && n < last; n = stop) {
        int64_t s = t->segments[t->order[n]];
        for (stop = n; stop < last && t->segments[t->order[stop]] == s;) stop++;
        segment(&b, n, stop, n == from.number ? first : out + s * tasks * tasks);
    }
    free(b.totals), free(b.panel), free(b.rows), free(b.ids), free(b.used);
    return failed ? NO_MEMORY : 0;
}

/* out [S, K, K]: zeros when it comes. */
int gram(int64_t parameters, int64_t tasks, const void *addresses, const int64_t *sizes,
         const int64_t *segments, const uint8_t *kinds, int64_t segment_count, int most,
         int64_t share, double *out) {
    table t = {parameters, tasks, segment_count, addresses, sizes, segments, kinds, 0, 0};
    int failed = arrange(&t);
    int64_t cells = tasks * tasks;
    double *first = NULL;
    if (!failed) {
        int parts = least(most, 1 + t.before[parameters] / share);
        first = calloc((size_t)parts * cells, sizeof *first);
        failed = first ? 0 : NO_MEMORY;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1) reduction(| : failed)
        for (int part = 0; part < parts; part++)
            if (first)
                failed |= part_of_gram(&t, cut(&t, part, parts), cut(&t, part + 1, parts),
                                       first + (size_t)part * cells, out);
        for (int part = 0; !failed && part < parts; part++) {
            place from = cut(&t, part, parts);
            if (from.number == parameters) continue;
            double *into = out + segments[t.order[from.number]] * cells;
            for (int64_t cell = 0; cell < cells; cell++) into[cell] += first[(size_t)part * cells + cell];
        }
    }
    free(first);
    free(t.order);
    return failed;
}

/* ---- combine ---- */

/* acc[e] (+)= sum of `count` gradients times their weights; `fresh` starts a sum. */
#define MIX(KIND, S, T)                                                                            \
    INLINE void mix_##KIND##_##T(int count, int fresh, T *acc, const S *const *x, const T *w,      \
                                 int64_t n) {                                                      \
        SIMD for (int64_t e = 0; e < n; e++) {                                                     \
            T sum = fresh ? w[0] * (T)from_##KIND(x[0][e]) : acc[e] + w[0] * (T)from_##KIND(x[0][e]); \
            if (count > 1) sum += w[1] * (T)from_##KIND(x[1][e]);                                  \
            if (count > 2) sum += w[2] * (T)from_##KIND(x[2][e]);                                  \
            if (count > 3) sum += w[3] * (T)from_##KIND(x[3][e]);                                  \
            acc[e] = sum;                                                                          \
        }                                                                                          \
    }                                                                                              \
    static void combine_##KIND##_##T(int count, const S **x, const T *w, int64_t n) {              \
        T scratch[MIXED];                                                                          \
        S *out = (S *)x[0];                                                                        \
        T *acc = sizeof(S) == sizeof(T) ? (T *)out : scratch;                                      \
        for (int k = 0; k < count; k += TILE) switch (least(TILE, count - k) + (k ? TILE : 0)) {   \
            case 1: mix_##KIND##_##T(1, 1, acc, x + k, w + k, n); break;                           \
            case 2: mix_##KIND##_##T(2, 1, acc, x + k, w + k, n); break;                           \
            case 3: mix_##KIND##_##T(3, 1, acc, x + k, w + k, n); break;                           \
            case 4: mix_##KIND##_##T(4, 1, acc, x + k, w + k, n); break;                           \
            case 5: mix_##KIND##_##T(1, 0, acc, x + k, w + k, n); break;                           \
            case 6: mix_##KIND##_##T(2, 0, acc, x + k, w + k, n); break;                           \
            case 7: mix_##KIND##_##T(3, 0, acc, x + k, w + k, n); break;                           \
            default: mix_##KIND##_##T(4, 0, acc, x + k, w + k, n);                                 \
            }                                                                                      \
        if (acc == scratch) {                                                                      \
            SIMD for (int64_t e = 0; e < n; e++) out[e] = to_##KIND(scratch[e]);                   \
        }                                                                                          \
    }

MIX(F32, float, float)
MIX(BF16, uint16_t, float)
MIX(F16, uint16_t, float)
MIX(F32, float, double)
MIX(BF16, uint16_t, double)
MIX(F16, uint16_t, double)
MIX(F64, double, double)

static int part_of_combine(const table *t, const double *weights, place from, place to) {
    int64_t tasks = t->tasks, last = to.number + (to.element > 0);
    const void **x = malloc(tasks * sizeof *x);
    double *wide = malloc(tasks * sizeof *wide);
    float *narrow = malloc(tasks * sizeof *narrow);
    int failed = !x || !wide || !narrow;
    for (int64_t number = from.number; !failed && number < last; number++) {
        int64_t p = t->order[number], e = number == from.number ? from.element : 0, n;
        int64_t end = number == to.number ? to.element : t->sizes[p];
        int count = 0, kind = t->kinds[p], exact = kind == F64;
        for (int64_t k = 0; k < tasks; k++) {
            if (!t->addresses[p * tasks + k]) continue;
            double weight = weights[t->segments[p] * tasks + k], size = weight < 0 ? -weight : weight;
            exact |= size != 0 && !(size >= SMALL && size <= LARGE);
            wide[count] = weight;
            narrow[count] = (float)weight;
            x[count++] = t->addresses[p * tasks + k] + e * WIDTH[kind];
        }
        if (!count || (count == 1 && wide[0] == 1)) continue; /* that leaves it as it is */
        for (; e < end; e += n) {
            n = least(MIXED, end - e);
            switch (kind + 4 * exact) {
            case F32: combine_F32_float(count, (const float **)x, narrow, n); break;
            case BF16: combine_BF16_float(count, (const uint16_t **)x, narrow, n); break;
            case F16: combine_F16_float(count, (const uint16_t **)x, narrow, n); break;
            case 4 + F32: combine_F32_double(count, (const float **)x, wide, n); break;
            case 4 + BF16: combine_BF16_double(count, (const uint16_t **)x, wide, n); break;
            case 4 + F16: combine_F16_double(count, (const uint16_t **)x, wide, n); break;
            default: combine_F64_double(count, (const double **)x, wide, n);
            }
            for (int k = 0; k < count; k++) x[k] = (const char *)x[k] + n * WIDTH[kind];
        }
    }
    free(x), free(wide), free(narrow);
    return failed ? NO_MEMORY : 0;
}

/* weights [S, K] */
int combine(int64_t parameters, int64_t tasks, const void *addresses, const int64_t *sizes,
            const int64_t *segments, const uint8_t *kinds, int64_t segment_count, int most,
            int64_t share, const double *weights) {
    table t = {parameters, tasks, segment_count, addresses, sizes, segments, kinds, 0, 0};
    int failed = arrange(&t);
    if (!failed) {
        int parts = least(most, 1 + t.before[parameters] / share);
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1) reduction(| : failed)
        for (int part = 0; part < parts; part++)
            failed |= part_of_combine(&t, weights, cut(&t, part, parts), cut(&t, part + 1, parts));
    }
    free(t.order);
    return failed;
}

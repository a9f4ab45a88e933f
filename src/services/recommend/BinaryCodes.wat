;; `bun run kernels` compiles this file into BinaryCodesKernel.ts.
;;
;; Adds up table entries for many rows at once. The codes lie in groups of 16 rows: the first byte of each row, then the
;; second byte of each row, and so on. Each byte holds two indexes, and each index has a table of 16 bytes:
;;
;;     out[row] = Σ_j  tables[2j][code[row][j] & 15] + tables[2j + 1][code[row][j] >> 4]
;;
;; The sum of eight entries, for four bytes of a row, fits a byte, and the whole sum fits 16 bits. No index exceeds 15, so the
;; relaxed instruction, which processors have as it is, gives the same.
(module
  (memory (export "memory") 1)
  (func (export "sum")
    (param $codes i32) (param $codesEnd i32) (param $tables i32) (param $tablesEnd i32) (param $out i32)
    (local $table i32) (local $code v128) (local $sum v128) (local $low v128)
    ;; Of pairs of rows as 16 bits: even + 256 · odd modulo 65536, and odd.
    (local $all v128) (local $odd v128)
    (local.set $low (v128.const i8x16 15 15 15 15 15 15 15 15 15 15 15 15 15 15 15 15))
    (loop $groups
      (local.set $table (local.get $tables))
      (local.set $all (v128.const i64x2 0 0))
      (local.set $odd (v128.const i64x2 0 0))
      (loop $bytes
        (local.set $code (v128.load (local.get $codes)))
        (local.set $sum (i8x16.add
          (i8x16.relaxed_swizzle (v128.load (local.get $table)) (v128.and (local.get $code) (local.get $low)))
          (i8x16.relaxed_swizzle
            (v128.load offset=16 (local.get $table))
            (v128.and (i16x8.shr_u (local.get $code) (i32.const 4)) (local.get $low)))))
        (local.set $code (v128.load offset=16 (local.get $codes)))
        (local.set $sum (i8x16.add (local.get $sum) (i8x16.add
          (i8x16.relaxed_swizzle (v128.load offset=32 (local.get $table)) (v128.and (local.get $code) (local.get $low)))
          (i8x16.relaxed_swizzle
            (v128.load offset=48 (local.get $table))
            (v128.and (i16x8.shr_u (local.get $code) (i32.const 4)) (local.get $low))))))
        (local.set $code (v128.load offset=32 (local.get $codes)))
        (local.set $sum (i8x16.add (local.get $sum) (i8x16.add
          (i8x16.relaxed_swizzle (v128.load offset=64 (local.get $table)) (v128.and (local.get $code) (local.get $low)))
          (i8x16.relaxed_swizzle
            (v128.load offset=80 (local.get $table))
            (v128.and (i16x8.shr_u (local.get $code) (i32.const 4)) (local.get $low))))))
        (local.set $code (v128.load offset=48 (local.get $codes)))
        (local.set $sum (i8x16.add (local.get $sum) (i8x16.add
          (i8x16.relaxed_swizzle (v128.load offset=96 (local.get $table)) (v128.and (local.get $code) (local.get $low)))
          (i8x16.relaxed_swizzle
            (v128.load offset=112 (local.get $table))
            (v128.and (i16x8.shr_u (local.get $code) (i32.const 4)) (local.get $low))))))
        (local.set $all (i16x8.add (local.get $all) (local.get $sum)))
        (local.set $odd (i16x8.add (local.get $odd) (i16x8.shr_u (local.get $sum) (i32.const 8))))
        (local.set $codes (i32.add (local.get $codes) (i32.const 64)))
        (local.set $table (i32.add (local.get $table) (i32.const 128)))
        (br_if $bytes (i32.lt_u (local.get $table) (local.get $tablesEnd))))
      (local.set $all (i16x8.sub (local.get $all) (i16x8.shl (local.get $odd) (i32.const 8))))
      (v128.store (local.get $out)
        (i8x16.shuffle 0 1 16 17 2 3 18 19 4 5 20 21 6 7 22 23 (local.get $all) (local.get $odd)))
      (v128.store offset=16 (local.get $out)
        (i8x16.shuffle 8 9 24 25 10 11 26 27 12 13 28 29 14 15 30 31 (local.get $all) (local.get $odd)))
      (local.set $out (i32.add (local.get $out) (i32.const 32)))
      (br_if $groups (i32.lt_u (local.get $codes) (local.get $codesEnd))))))
